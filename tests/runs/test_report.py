"""`run.py report`: the page says what the runs' files say, and shows text as text."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from learner.data.episode_log import EpisodeLog
from protocol.arrays import UINT8, unpack
from protocol.codec import encode
from protocol.messages import DropReason, EpisodeKey
from supervisor.cli.main import main
from supervisor.cli.report import EPISODES_SEARCHED, group_at, sample_episodes
from supervisor.recording import EPISODES_DIR, read_episodes
from telemetry.html.episode_view import (
    build_episode_view,
)
from telemetry.html.report import AROUND, RunData, render_report
from telemetry.sinks.metrics_file import read_metrics
from telemetry.work_clock import WorkClock
from tests.fixtures.runs import find_cut_episode

SCRIPT = "<script>document.title = 'broken'</script><b>bold</b>"


def write_report(*arguments: object) -> None:
    assert main(["report", *map(str, arguments)]) == 0


def test_a_page_needs_nothing_but_itself(acting_dir: Path) -> None:
    write_report(acting_dir)
    page = (acting_dir / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#)|url\(|@import|<script[^>]""", page)
    assert page.count("<script") == 1


def test_each_run_has_a_row_and_a_colour_and_settings_that_differ_are_listed(
    acting_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(acting_dir, other)
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(
        config.replace("learning_rate = 8e-05", "learning_rate = 0.001")
    )
    write_report(acting_dir, other, "--output", tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    legend = re.findall(r'<line class="line (s\d)"[^>]*></svg>([^<]*)<', page)
    assert legend == [("s0", "job"), ("s1", "other")]
    assert (
        "<td>learner.learning_rate</td><td>8e-05</td><td>0.001</td>" in page
        and "learner.groups_per_update" not in page
    )


def test_a_run_without_episodes_is_shown_as_far_as_it_goes(
    acting_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(acting_dir / "metrics.jsonl", tmp_path / "run" / "metrics.jsonl")
    write_report(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'id="summary"' in page and 'id="episodes"' not in page


def test_episodes_of_another_version_are_named(
    acting_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(acting_dir, tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / EPISODES_DIR)
    log = EpisodeLog.open(tmp_path / "old" / EPISODES_DIR)
    log.append([b"something else"])
    log.close()
    assert main(["report", str(tmp_path / "old")]) == 2
    assert "episodes was written by another version of this project" in capsys.readouterr().err


def test_report_to_a_place_that_cannot_be_written_is_refused_before_it_reads(
    acting_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A place for the page that is none is told before anything is read."""
    (tmp_path / "file").touch()
    assert main(["report", str(acting_dir), "--output", str(tmp_path / "file" / "page.html")]) == 2
    assert capsys.readouterr().err.startswith(f"error: --output: {tmp_path / 'file'} cannot be")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no run directory"),
        (["RUN", "--episodes", "t99.0"], "no episode t99.0"),
        (["RUN", "RUN"], "named twice"),
    ],
)
def test_what_cannot_be_shown_is_named(
    acting_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(str(acting_dir) if a == "RUN" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_episodes_without_turns_are_left_out(acting_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(acting_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / EPISODES_DIR)
    log = EpisodeLog.open(tmp_path / "run" / EPISODES_DIR)
    played = find_cut_episode(acting_dir)
    other = msgspec.structs.replace(played.key, member=1 - played.key.member)
    dropped = msgspec.structs.replace(
        played, key=other, turns=[], drop_reason=DropReason.ENV_ERROR, detail="no such game"
    )
    log.append([encode(dropped), encode(played)])
    log.close()
    write_report(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('class="episode"') == 1


def test_text_of_an_episode_is_text(acting_dir: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(acting_dir, hostile)
    episode = find_cut_episode(acting_dir)
    turn = msgspec.structs.replace(episode.turns[0], action=SCRIPT, anchor=SCRIPT)
    shutil.rmtree(hostile / EPISODES_DIR)
    log = EpisodeLog.open(hostile / EPISODES_DIR)
    log.append(
        [encode(msgspec.structs.replace(episode, task=SCRIPT, turns=[turn, *episode.turns[1:]]))]
    )
    log.close()
    write_report(hostile)
    page = (hostile / "report.html").read_text()
    assert SCRIPT not in page and "&lt;script&gt;" in page
    assert not re.search(
        "<script>document|<b>bold",
        render_report(
            [
                RunData(
                    SCRIPT, [], {"a": SCRIPT}, [], [build_episode_view(episode, lambda ids: SCRIPT)]
                )
            ]
        ),
    )


def test_an_episode_is_shown_token_by_token_as_recorded(acting_dir: Path) -> None:
    episode = find_cut_episode(acting_dir)
    kept = episode.turns[0].kept
    shown = build_episode_view(
        episode, lambda ids: "".join(f"<{i}>" for i in ids), advantages=[0.5] * len(episode.turns)
    ).turns[0]
    assert [a.kept for a in shown.attempts] == [False] * len(episode.turns[0].rejected) + [True]
    tokens = shown.attempts[-1].tokens
    assert len(tokens) == kept.length and shown.advantage == 0.5
    cut = next(event.position for event in kept.events if event.kind == "intervene")
    assert [i for i, token in enumerate(tokens) if token.forced] == [
        i for i, m in enumerate(unpack(kept.mask, UINT8)) if not m
    ]
    assert min(i for i, token in enumerate(tokens) if token.forced) >= cut
    assert f"thinking cut at token {cut}: settled" in shown.attempts[-1].events[0]


def test_a_boundary_of_weights_is_where_the_version_changes(acting_dir: Path) -> None:
    from protocol.messages import Span

    episode = find_cut_episode(acting_dir)
    kept = episode.turns[0].kept
    two = msgspec.structs.replace(kept, spans=[Span(0, 3, 4), Span(3, kept.length, 5)])
    changed = msgspec.structs.replace(
        episode, turns=[msgspec.structs.replace(episode.turns[0], kept=two)]
    )
    tokens = build_episode_view(changed, lambda ids: "x").turns[0].attempts[-1].tokens
    assert [token.version for token in tokens[:4]] == [4, 4, 4, 5]
    assert [i for i, token in enumerate(tokens) if token.first_of_version] == [3]


def test_of_a_long_log_no_more_episodes_are_read_than_are_looked_at(acting_dir: Path) -> None:
    """An episode that is not looked at is not read.

    Here it cannot be, and would end the command.
    """
    _, episode = next(read_episodes(acting_dir / EPISODES_DIR))
    every = 3
    records = [
        encode(episode) if number % every == 0 else b"no episode"
        for number in range(every * EPISODES_SEARCHED - 1)
    ]
    work = WorkClock("reading", Console(quiet=True))
    found = list(sample_episodes(records, acting_dir, (), "long", work))
    assert [number for number, _ in found] == list(range(0, len(records), every)) and len(
        found
    ) == EPISODES_SEARCHED


def test_a_group_is_found_around_one_of_its_episodes_and_nothing_beyond_it_is_read(
    acting_dir: Path,
) -> None:
    _, episode = next(read_episodes(acting_dir / EPISODES_DIR))
    groups = [7, 4, 4, 7, 4, 7]
    keys = [EpisodeKey(group, number) for number, group in enumerate(groups)]
    records = [
        encode(msgspec.structs.replace(episode, key=key)) for key in [*keys, EpisodeKey(4, 0, True)]
    ] + [b"no episode"] * 9
    found = group_at(records, 2, acting_dir, size=3)
    assert sorted(member.key.member for member in found) == [1, 2, 4]


def test_a_thousand_updates_and_their_episodes_are_a_small_page(acting_dir: Path) -> None:
    """Points are thinned and episodes sampled.

    A browser has no more to load after 1,000 updates than after 300.
    """
    (update,) = [r for r in read_metrics(acting_dir / "metrics.jsonl") if r["kind"] == "update"][:1]
    records = [
        update | {"update": u, "wall_seconds": float(u), "training_tokens": 100.0 * u}
        for u in range(1, 1001)
    ]
    assert (
        len(render_report([RunData("long", records, {}, [[0.5] * (2 * AROUND + 1)] * 2000)]))
        < 1_000_000
    )
