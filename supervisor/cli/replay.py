"""`python run.py replay`: recorded episodes through the rules of control again.

They show where control acted and why, and where it would have acted with other settings.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from config import ConfigError
from config.options import this_command
from config.resolve import parse_overrides, resolve_recorded
from controller.rules.early_stop import EarlyStopTest
from controller.rules.replay import ReplayedTurn, replay
from controller.rules.stall import find_stall, score_change, turn_score
from controller.rules.thinking import Intervention, RuleSpec
from controller.think_tokens import ThinkTokens, build_rule_spec, load_think_tokens
from protocol.arrays import INT32, finite_or_none, none_to_nan, unpack
from protocol.messages import ControlEvent, Response, StopReason, Trajectory
from protocol.prompting import load_prompter
from supervisor.job import build_environment
from supervisor.recording import EPISODES_DIR, read_episodes, recorded_job
from telemetry.html.episode_view import describe_outcome, list_prompts

FILTERS = ("--unsolved", "--cut")
"""Flags of the list of episodes."""

LEGEND = """{shown:,} of {total:,} episodes. t3.1: member 1 of training group 3; e0.5: task 5 of \
evaluation 0; reward: of all turns, as the environment gives it; cut: thoughts that control ended; \
again: how often turns were sampled again."""

MIN_TASK_CHARACTERS = 12
OTHER_COLUMNS_WIDTH = 54


def main(arguments: list[str]) -> int:
    """List recorded episodes, or print one as control saw it then and would see it now."""
    parser = argparse.ArgumentParser(
        prog="run.py replay",
        description=(
            "Recorded episodes through the rules of control again: where they acted and why, and "
            "where they would with other settings, which may follow (--control.t2po.epsilon 0.01). "
            "Without EPISODE: the episodes of the run, t3.1 being member 1 of training group 3, "
            "and e0.5 task 5 of evaluation 0."
        ),
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "episode",
        nargs="?",
        default="",
        metavar="EPISODE",
        help="its name in that list, such as t3.1",
    )
    parser.add_argument("--turn", type=int, metavar="N", help="one turn (from 1), token by token")
    parser.add_argument("--unsolved", action="store_true", help="list only episodes not solved")
    parser.add_argument("--cut", action="store_true", help="list only those with a thought cut")
    names = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    rest = arguments[len(names) :]
    if {"-h", "--help"} & set(rest):
        parser.parse_args(["--help"])
    flags = [argument for argument in rest if argument in FILTERS]
    overrides = parse_overrides([argument for argument in rest if argument not in FILTERS])
    if "turn" in overrides:
        names.append(f"--turn={overrides.pop('turn')}")
    options = parser.parse_args([*names, *flags])
    console = Console()
    if options.episode:
        replay_episode(options.run, options.episode, options.turn, overrides, console)
    else:
        list_episodes(options.run, overrides, console, options.unsolved, options.cut)
    return 0


class Recording:
    """The episodes of a run directory, and what is needed to read them."""

    def __init__(self, run_dir: Path, overrides: dict[str, str]) -> None:
        """Raises ConfigError if `run_dir` has no episodes."""
        job = recorded_job(run_dir, "replay")
        self._run_dir = run_dir
        self._record = run_dir / "config.toml"
        resolution = resolve_recorded(self._record, overrides)
        self.config = resolution.config
        self._sources = resolution.sources
        model_dir = Path(job.model_dir)
        self.tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        environment = build_environment(self.config)
        self.tokens: ThinkTokens = load_think_tokens(
            model_dir,
            load_prompter(model_dir, self.config.model.chat_options()),
            environment,
            self.config.control,
        )

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, with the special ones, which tell who speaks."""
        return self.tokenizer.decode(tokens, skip_special_tokens=False)

    def episodes(self) -> Iterator[Trajectory]:
        """The episodes in the order in which they ended."""
        return (episode for _, episode in read_episodes(self._run_dir / EPISODES_DIR))

    def rule(self, response: Response) -> RuleSpec:
        """The rule as it is configured now, with the epsilon that was in force then.

        A configured epsilon is taken if it, or a recipe with one, was asked for.
        """
        epsilon = self._threshold("epsilon", response.epsilon)
        return build_rule_spec(self.config.control, self.tokens, epsilon)

    def eta(self, response: Response) -> float | None:
        """The eta that was in force then, if any was, unless another one is asked for."""
        return self._threshold("eta", response.eta)

    def _threshold(self, name: str, recorded: float) -> float | None:
        if self._sources.get(f"control.t2po.{name}") != str(self._record):
            return getattr(self.config.control.t2po, name)
        return finite_or_none(recorded)

    def replay(self, response: Response) -> ReplayedTurn | None:
        """Feed a response to the rule as configured now; None for one that was not watched."""
        if not response.signals:
            return None
        tokens = unpack(response.tokens, INT32)
        return replay(tokens, response.signal_table(), self.rule(response))

    def turn_score(self, response: Response) -> float | None:
        """The score of a turn as configured now; None where nothing was measured."""
        replayed = self.replay(response)
        if replayed is None:
            return None
        control = self.config.control
        return turn_score(replayed.scores, control.t2po.turn_mean, control.t2po.turn_skip)

    def is_stalled(self, gamma: float | None, eta: float) -> bool:
        """Tell whether a turn whose score changed by `gamma` is stalled, as configured now."""
        zero_counts = self.config.control.t2po.score != "code"
        return find_stall(gamma, eta, zero_counts=zero_counts) is not None


def replay_episode(
    run_dir: Path, name: str, turn: int | None, overrides: dict[str, str], console: Console
) -> None:
    """Print an episode turn by turn, or one turn of it (`turn`, from 1) token by token.

    Raises ConfigError for a run, an episode or a turn that does not exist.
    """
    recording = Recording(run_dir, overrides)
    episode = next((e for e in recording.episodes() if e.key.id == name), None)
    if episode is None:
        raise ConfigError(
            f"replay: {run_dir} has no episode {name}; `{this_command()} replay {run_dir}` "
            "lists them"
        )
    if turn is not None and not 1 <= turn <= len(episode.turns):
        raise ConfigError(f"replay: episode {name} has turns 1 to {len(episode.turns)}, not {turn}")
    console.print(
        f"[bold]{name}[/]  {_escape(describe_outcome(episode))}, {len(episode.turns)} turns: "
        f"{_escape(episode.task)}",
        highlight=False,
    )
    _print_episode(recording, episode, turn, console)


def list_episodes(
    run_dir: Path,
    overrides: dict[str, str],
    console: Console,
    only_unsolved: bool = False,
    only_cut: bool = False,
) -> None:
    """List the episodes of a run.

    Raises ConfigError for a directory that has none.
    """
    recording = Recording(run_dir, overrides)
    rows = []
    total = 0
    for episode in recording.episodes():
        total += 1
        row = summarize_episode(episode)
        is_left_out = (only_unsolved and episode.success) or (only_cut and not row.cuts)
        if not is_left_out:
            rows.append(row)
    table = Table("episode", "turns", "solved", "reward", "cut", "again", box=None)
    table.add_column("task")
    task_characters = max(MIN_TASK_CHARACTERS, console.width - OTHER_COLUMNS_WIDTH)
    for row in sorted(rows):
        table.add_row(
            row.name,
            str(row.turns),
            row.outcome,
            f"{row.reward:g}",
            str(row.cuts),
            str(row.resampled),
            _escape(" ".join(row.task.split())[:task_characters]),
        )
    console.print(table)
    legend = LEGEND.format(shown=len(rows), total=total)
    console.print(legend, highlight=False, markup=False, soft_wrap=True)
    if recording.config.control.t2po.early_stall:
        console.print(describe_early_stops(recording), highlight=False)


class EpisodeRow(NamedTuple):
    """An episode in the list; rows sort as episodes were admitted, evaluations last."""

    is_evaluation: bool
    group: int
    member: int
    name: str
    turns: int
    outcome: str
    reward: float
    cuts: int
    resampled: int
    task: str


def summarize_episode(episode: Trajectory) -> EpisodeRow:
    """The row of an episode."""
    outcome = "yes" if episode.success else "no"
    return EpisodeRow(
        is_evaluation=episode.key.evaluation,
        group=episode.key.group,
        member=episode.key.member,
        name=episode.key.id,
        turns=len(episode.turns),
        outcome=str(episode.drop_reason or outcome),
        reward=sum(turn.reward for turn in episode.turns),
        cuts=sum(_count_cuts(turn.kept) for turn in episode.turns),
        resampled=sum(len(turn.rejected) for turn in episode.turns),
        task=episode.task,
    )


def _count_cuts(response: Response) -> int:
    return sum(event.kind == "intervene" for event in response.events)


@dataclass
class EarlyStops:
    """Counts of what ending turns early would have done."""

    compared: int = 0
    stalled: int = 0
    ended: int = 0
    wrongly_ended: int = 0
    saved_tokens: int = 0


def describe_early_stops(recording: Recording) -> str:
    """Say what ending turns early, as configured now, would have saved and cost.

    It is counted over the turns of the run that were complete.
    """
    counts = EarlyStops()
    for episode in recording.episodes():
        score_before: float | None = None
        for turn in episode.turns:
            for response in (*turn.rejected, turn.kept):
                _count_early_stop(recording, response, score_before, counts)
            score = recording.turn_score(turn.kept)
            if score is not None:
                score_before = score
    return (
        f"ended early at {recording.config.control.t2po.early_stall:g} (control.t2po.early_stall): "
        f"{counts.ended} of {counts.compared:,} turns, {counts.wrongly_ended} of them wrongly, "
        f"{counts.saved_tokens:,} tokens saved; {counts.stalled} were stalled in the end"
    )


def _count_early_stop(
    recording: Recording, response: Response, score_before: float | None, counts: EarlyStops
) -> None:
    """Add to `counts` what the test for early stops makes of a response that was complete."""
    control = recording.config.control
    eta = recording.eta(response)
    replayed = recording.replay(response)
    is_complete = response.stop is not StopReason.EARLY
    if score_before is None or eta is None or replayed is None or not is_complete:
        return
    score = turn_score(replayed.scores, control.t2po.turn_mean, control.t2po.turn_skip)
    is_stalled = recording.is_stalled(score_change(score, score_before), eta)
    test = EarlyStopTest(
        control.t2po.early_stall,
        score_before,
        eta,
        recording.config.sampling.max_tokens,
        control.t2po.turn_mean,
        control.t2po.turn_skip,
    )
    counts.compared += 1
    counts.stalled += is_stalled
    if test.observe(replayed.scores) and test.position is not None:
        counts.ended += 1
        counts.wrongly_ended += not is_stalled
        counts.saved_tokens += response.length - 1 - test.position


def _print_episode(
    recording: Recording, episode: Trajectory, only_turn: int | None, console: Console
) -> None:
    score_before: float | None = None
    prompts = list_prompts(episode)
    for number, (turn, (shown, prompt)) in enumerate(zip(episode.turns, prompts, strict=True), 1):
        if only_turn is None or only_turn == number:
            console.print(f"\n[bold]turn {number}[/], {shown}:", highlight=False)
            text = recording.decode(prompt).strip()
            console.print(f"[dim]{_escape(text)}[/]", highlight=False)
            for response in (*turn.rejected, turn.kept):
                mark = " (rejected)" * (response is not turn.kept)
                text = _escape(recording.decode(_token_ids(response)))
                console.print(f"[bold]its response{mark}:[/] {text}", highlight=False)
                replayed = recording.replay(response)
                for line in explain_response(response, replayed, score_before, recording):
                    console.print(f"  {line}", highlight=False)
                if only_turn is not None and replayed is not None:
                    console.print(token_table(response, replayed, recording.tokenizer))
        score = recording.turn_score(turn.kept)
        if score is not None:
            score_before = score


def explain_response(
    response: Response,
    replayed: ReplayedTurn | None,
    score_before: float | None,
    recording: Recording,
) -> list[str]:
    """Say in lines what control did then and would do now.

    `score_before` is that of the kept turn before.
    """
    if replayed is None:
        return ["not watched: evaluations are not"]
    recorded = next((event for event in response.events if event.kind == "intervene"), None)
    lines = [f"then: {_describe_cut(recorded)}", f"now:  {_describe_cut(replayed.intervention)}"]
    if recorded is not None and (
        replayed.intervention is None or replayed.intervention.position > recorded.position
    ):
        lines.append(
            f"      (what follows token {recorded.position} was forced: what this rule would have "
            "met there is not known)"
        )
    lines += [
        f"then: sampled again ({_describe_resample(event)})"
        for event in response.events
        if event.kind == "resample"
    ]
    score = recording.turn_score(response)
    if score is not None and score_before is not None:
        lines.append(_describe_change(score, score_before, response, recording))
    return lines


def _describe_cut(cut: ControlEvent | Intervention | None) -> str:
    if cut is None:
        return "not cut"
    return (
        f"cut at token {cut.position} ({cut.reason}: {cut.value:.3g} against {cut.threshold:.3g})"
    )


def _describe_resample(event: ControlEvent) -> str:
    if isnan(event.value):
        return event.reason
    return f"{event.reason}, {event.value:.3g} against {event.threshold:.3g}"


def _describe_change(
    score: float, score_before: float, response: Response, recording: Recording
) -> str:
    gamma = score_change(score, score_before)
    eta = recording.eta(response)
    if eta is None:
        verdict = "no eta in force"
    elif recording.is_stalled(gamma, eta):
        verdict = f"stalled at eta {eta:.3g}"
    else:
        verdict = f"not stalled at eta {eta:.3g}"
    return f"turn: score {score:.4f}, changed by {gamma:.3g}: {verdict}"


def token_table(response: Response, replayed: ReplayedTurn, tokenizer: Tokenizer) -> Table:
    """A line a token: what was measured before it was sampled, and what the rule made of that.

    Entropy, confidence and log-prob are in nats; the score of T2PO's paper has no unit.
    """
    table = Table(
        "",
        "token",
        "entropy (nats)",
        "confidence (nats)",
        "top log-prob (nats)",
        "score",
        "change",
        "compared",
        "",
        box=None,
    )
    is_forced = [chosen == 0 for chosen in response.mask]
    cut_at = -1
    if replayed.intervention is not None:
        cut_at = replayed.intervention.position
    score_before = nan
    signals = response.signal_table().tolist()
    for position, (token, signal) in enumerate(zip(_token_ids(response), signals, strict=True)):
        score = replayed.scores[position]
        marks = ["forced"] * is_forced[position] + ["<- cut"] * (position == cut_at)
        table.add_row(
            str(position),
            Text(repr(tokenizer.decode([token], skip_special_tokens=False))),
            *(_format_number(value) for value in signal),
            _format_number(score),
            _format_number(abs(score - score_before)),
            _format_number(none_to_nan(replayed.statistics[position])),
            " ".join(marks),
        )
        score_before = score
    return table


def _token_ids(response: Response) -> list[int]:
    return unpack(response.tokens, INT32).tolist()


def _format_number(value: float) -> str:
    if isnan(value):
        return ""
    return f"{value:.4f}"


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
