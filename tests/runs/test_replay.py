"""`run.py replay` on a run that was recorded with control on."""

from __future__ import annotations

import io
import re
import shutil
from math import isnan, nan
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from config import ConfigError, Job
from controller.responses import dropped_episode
from controller.rules.replay import replay
from controller.rules.scores import Signal
from controller.rules.thinking import Intervention, RuleSpec, ThinkingSettings
from learner.data.episode_log import EpisodeLog
from protocol.arrays import FLOAT16, INT32, UINT8, unpack
from protocol.codec import encode
from protocol.messages import DropReason, EpisodeKey, Response
from supervisor.cli.main import main
from supervisor.cli.replay import Recording, list_episodes, replay_episode
from supervisor.job import save_job
from supervisor.recording import EPISODES_DIR, recorded_job
from tests.fixtures.messages import make_tags
from tests.fixtures.runs import find_cut_episode, job_in, small_config

OPEN = 1
CLOSE = 2
WORD = 9


@given(
    st.lists(
        st.tuples(st.floats(0, 5, width=32), st.floats(0, 9, width=32), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_a_recorded_turn_replays_to_the_decision_that_was_made(values):
    delegated = RuleSpec(
        ThinkingSettings("paper", 0.4, 100, "mean", 1, 0.3, 2, 20), make_tags(OPEN, CLOSE), [CLOSE]
    )
    tokens = [OPEN] + [WORD] * (len(values) - 1)
    rule = delegated.build()
    for i, (h, c, lost) in enumerate(values):
        if not lost:
            rule.observe(Signal(i, h, c, -h, -1, tokens[i - 1] if i else -1))
    table = np.full((len(values), 3), nan, np.float32)
    table[: len(rule.signals)] = np.array(rule.signals, np.float32).reshape(-1, 3)
    replayed = replay(np.array(tokens), table, delegated)
    assert replayed.intervention == rule.intervention
    np.testing.assert_array_equal(
        replayed.scores, rule.scores + [nan] * (len(values) - len(rule.scores))
    )


def test_what_was_compared_is_shown_at_each_token_until_the_decision():
    delegated = RuleSpec(
        ThinkingSettings("paper", 1.0, 100, "mean", 0, 0.1, 2, 20), make_tags(OPEN, CLOSE), [CLOSE]
    )
    table = np.array(
        [[0.0, 1, -1], [4.0, 1, -1], [2.0, 1, -1], [2.0, 1, -1], [0.0, 1, -1]], np.float32
    )
    replayed = replay(np.array([OPEN, *[WORD] * 4]), table, delegated)
    assert replayed.scores == [0.0, 1.0, 0.5, 0.5, 0.0]
    assert replayed.statistics == [None, None, 0.5, 0.0, None]
    assert replayed.intervention.position == 3


@pytest.mark.parametrize("tiny", [True, False])
def test_run_of_another_machine_is_read_with_its_own_policy_or_the_model_here(
    tmp_path: Path, small_policy: Path, tiny: bool
):
    """A run of another machine is read with its own policy or the model as it is found here."""
    run = tmp_path / "run"
    named = small_config(model__name=str(small_policy))
    job = msgspec.structs.replace(
        job_in(run, named), model_dir="/not/here", config=small_config() if tiny else named
    )
    save_job(job)
    (run / "config.toml").touch()
    (run / "episodes").mkdir()
    assert recorded_job(run, "replay").model_dir == str(run / "policy" if tiny else small_policy)


def printed(job: Job, episode: str, turn: int | None = None, **overrides: str) -> str:
    console = Console(record=True, width=200, file=io.StringIO())
    settings = {name.replace("__", "."): text for name, text in overrides.items()}
    if episode:
        replay_episode(Path(job.run_dir), episode, turn, settings, console)
    else:
        list_episodes(Path(job.run_dir), settings, console)
    return console.export_text()


def _forces(intervention: Intervention | None, attempt: Response) -> bool:
    """Say if a token was forced since: a decision where the response ended is not recorded."""
    if intervention is None:
        return False
    return not all(unpack(attempt.mask, UINT8)[intervention.position :])


def test_every_recorded_decision_is_made_again(acting_run: Job) -> None:
    recording = Recording(Path(acting_run.run_dir), {})
    decisions = 0
    for episode in recording.episodes():
        for turn in episode.turns:
            for attempt in (turn.kept, *turn.rejected):
                if not attempt.signals:
                    continue
                again = replay(
                    unpack(attempt.tokens, INT32), attempt.signal_table(), recording.rule(attempt)
                )
                then = [event for event in attempt.events if event.kind == "intervene"]
                now = [again.intervention] if _forces(again.intervention, attempt) else []
                assert [(e.position, e.reason, e.value) for e in then] == [
                    (d.position, d.reason, d.value) for d in now
                ]
                np.testing.assert_array_equal(
                    np.array(again.scores, FLOAT16), unpack(attempt.uncertainty, FLOAT16)
                )
                decisions += len(then)
    assert decisions


def test_it_says_where_control_acted_and_on_which_numbers(
    acting_run: Job, acting_dir: Path
) -> None:
    event = find_cut_episode(acting_dir).turns[0].kept.events[0]
    text = printed(acting_run, find_cut_episode(acting_dir).key.id)
    assert (
        f"then: cut at token {event.position} ({event.reason}: {event.value:.3g} against 10)"
        in text
    )
    assert "then: sampled again (stalled" in text


def test_another_epsilon_shows_what_would_change(acting_run: Job, acting_dir: Path) -> None:
    text = printed(acting_run, find_cut_episode(acting_dir).key.id, control__t2po__epsilon="0")
    assert "now:  not cut" in text and "what this rule would have met there is not known" in text


def test_a_recipe_brings_its_thresholds_and_its_score(acting_run: Job, acting_dir: Path) -> None:
    response = find_cut_episode(acting_dir).turns[1].kept
    recording = Recording(Path(acting_run.run_dir), {"recipe": "t2po-code"})
    assert recording.config.control.t2po.score == "code"
    assert recording.eta(response) == 0.3
    assert Recording(Path(acting_run.run_dir), {}).eta(response) == 10


def test_a_turn_is_shown_token_by_token(acting_run: Job, acting_dir: Path) -> None:
    text = printed(acting_run, find_cut_episode(acting_dir).key.id, turn=1)
    assert "<- cut" in text and "forced" in text and "entropy" in text


def test_episodes_are_listed(acting_run: Job, acting_dir: Path) -> None:
    text = printed(acting_run, "")
    assert find_cut_episode(acting_dir).key.id in text and "sampled again" in text


def test_list_episodes_sorts_them_by_group_and_member(acting_run: Job) -> None:
    """Episodes are listed as they were admitted, and not as they ended; evaluations last."""
    rows = [line.split()[0] for line in printed(acting_run, "").splitlines()[1:-1]]
    keys = [(name[0] == "e", *map(int, name[1:].split("."))) for name in rows]
    assert keys == sorted(keys) and {name[0] for name in rows} == {"t", "e"}


def test_replay_episode_shows_what_the_agent_was_shown_in_each_turn(
    acting_run: Job, acting_dir: Path
) -> None:
    """The game can be followed: each turn has its prompt before its response."""
    episode = find_cut_episode(acting_dir)
    lines = printed(acting_run, episode.key.id).splitlines()
    assert sum(line.endswith("what the agent was shown:") for line in lines) == len(episode.turns)
    shown = Recording(Path(acting_run.run_dir), {}).decode(
        unpack(episode.turns[-1].prompt, INT32).tolist()
    )
    assert set(shown.strip().splitlines()) <= set(lines)


def test_an_episode_that_failed_is_listed_as_dropped_and_shown_with_why(
    acting_run: Job, tmp_path: Path
) -> None:
    job = msgspec.structs.replace(
        acting_run, run_dir=str(shutil.copytree(acting_run.run_dir, tmp_path / "run"))
    )
    failed = dropped_episode(
        EpisodeKey(9, 0), DropReason.ACTOR_LOST, "not brought to an end by [3] actors"
    )
    log = EpisodeLog.open(tmp_path / "run" / EPISODES_DIR)
    log.append([encode(failed)])
    log.close()
    (line,) = [
        line for line in printed(job, "").splitlines() if line.split()[:1] == [failed.key.id]
    ]
    assert "actor_lost" in line and "not brought to an end by [3] actors" in printed(
        job, failed.key.id
    )


def test_it_is_counted_what_ending_turns_early_would_have_saved(acting_run: Job) -> None:
    """Every turn was stalled, so that none would have been ended wrongly."""
    line = printed(acting_run, "", control__t2po__early_stall="0.1").splitlines()[-1]
    found = re.match(
        r"ended early at 0\.1 .*: (\d+) of ([\d,]+) turns, 0 of them wrongly, "
        r"([\d,]+) tokens saved; (\d+) were stalled",
        line,
    )
    assert found is not None
    ended, compared, saved, stalls = (int(number.replace(",", "")) for number in found.groups())
    assert 0 < ended <= compared == stalls and saved > 0


def test_an_evaluation_has_nothing_to_replay(acting_run: Job) -> None:
    episode = next(
        e for e in Recording(Path(acting_run.run_dir), {}).episodes() if e.key.evaluation
    )
    assert isnan(episode.turns[0].kept.epsilon)
    assert "not watched" in printed(acting_run, episode.key.id)


def test_the_command_line_takes_settings_without_an_episode(
    acting_run: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", acting_run.run_dir, "--control.t2po.epsilon", "0.01"]) == 0
    assert "sampled again" in capsys.readouterr().out


def test_replay_lists_only_the_episodes_that_are_asked_for(
    acting_run: Job, acting_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = list(Recording(Path(acting_run.run_dir), {}).episodes())
    assert main(["replay", acting_run.run_dir, "--cut"]) == 0
    listed = capsys.readouterr().out
    assert find_cut_episode(acting_dir).key.id in listed
    evaluation = next(e for e in episodes if e.key.evaluation)
    assert f" {evaluation.key.id} " not in listed, "evaluations are not cut"
    assert main(["replay", acting_run.run_dir, "--unsolved"]) == 0
    _, *rows, legend = capsys.readouterr().out.strip().splitlines()
    assert len(rows) == sum(not episode.success for episode in episodes)
    assert legend.startswith(f"{len(rows)} of {len(episodes)} episodes. t3.1: member 1 of ")


@pytest.mark.parametrize(
    ("episode", "turn", "said"),
    [("t999.0", None, "lists them"), ("first", 99, "turns 1 to"), ("first", 0, "turns 1 to")],
)
def test_what_does_not_exist_is_named(
    acting_run: Job, acting_dir: Path, episode: str, turn: int | None, said: str
) -> None:
    name = find_cut_episode(acting_dir).key.id if episode == "first" else episode
    with pytest.raises(ConfigError, match=said):
        printed(acting_run, name, turn)


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run directory .* job\.json"):
        Recording(tmp_path, {})
