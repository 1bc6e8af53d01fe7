"""`python run.py replay`: recorded episodes through a rule again, to see where control acted and
why, and where it would have."""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from config import Config, ConfigError, Job
from config.defaults import with_preset
from config.resolve import resolve
from controller.rules.early_stop import EarlyStopTest
from controller.rules.replay import ReplayedTurn, replay
from controller.rules.thinking import RuleSpec, ThinkingSettings
from controller.rules.turn import find_stall, score_change, turn_score
from controller.think_tokens import ThinkTokens, think_tokens
from learner.data.episode_log import read_records
from protocol.arrays import INT32, finite_or_none, none_to_nan, unpack
from protocol.codec import BadFrame, decode
from protocol.messages import Response, StopReason, Trajectory
from supervisor.job import build_environment
from supervisor.models import find_model
from telemetry.html.episode_view import describe_outcome

LOG = Path("episodes")


def recorded_job(run_dir: Path, command: str) -> Job:
    """The job of a run directory with episodes, which may have been moved, or come from another
    machine. ConfigError if it is none, or if its model is not to be had here."""
    for needed in ("job.json", "config.toml", str(LOG)):
        if not (run_dir / needed).exists():
            raise ConfigError(
                f"{command}: {run_dir} is no run directory with episodes (it has no {needed})"
            )
    job = Job.load(run_dir / "job.json")
    if Path(job.model_dir).exists():
        return job
    return msgspec.structs.replace(
        job, model_dir=str(find_model(job.config, Console(stderr=True)) or run_dir / "policy")
    )


def read_episodes(log: Path) -> Iterator[tuple[int, Trajectory]]:
    """(Where its record ends, the episode), in the order in which they ended.

    ConfigError for a log that we cannot read.
    """
    for _, end, frame in read_records(log):
        if (episode := episode_in(frame, log)) is not None:
            yield end, episode


def episode_in(frame: bytes, log: Path) -> Trajectory | None:
    """The episode of a record of `log`; None for one of something else.

    ConfigError if we cannot read it.
    """
    try:
        message = decode(frame)
    except BadFrame as error:
        raise ConfigError(
            f"{log} was written by another version of this project: {error}"
        ) from None
    return message if isinstance(message, Trajectory) else None


class Recording:
    """The episodes of a run directory, and what is needed to read them.

    ConfigError if it is none.
    """

    def __init__(self, run_dir: Path, overrides: dict[str, str]) -> None:
        job = recorded_job(run_dir, "replay")
        self._run_dir = run_dir
        self._given = {name.replace("-", "_") for name in overrides}
        self.config: Config = resolve(run_dir / "config.toml", with_preset(overrides, job.config))
        model_dir = Path(job.model_dir)
        self.tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        environment = build_environment(self.config)
        self.tokens: ThinkTokens = think_tokens(model_dir, environment, self.config.control)

    def episodes(self) -> Iterator[Trajectory]:
        """In the order in which they ended."""
        return (episode for _, episode in read_episodes(self._run_dir / LOG))

    def rule(self, attempt: Response) -> RuleSpec:
        """The rule as it is configured now, with the epsilon that was in force then, unless another
        one is asked for."""
        c = self.config.control
        epsilon = self._threshold("epsilon", attempt.epsilon)
        rule = ThinkingSettings(
            c.score,
            c.alpha,
            self.tokens.vocabulary,
            c.delta_statistic,
            c.window,
            epsilon,
            c.min_thinking,
            c.max_thinking,
        )
        return RuleSpec(rule, self.tokens.open, self.tokens.close, self.tokens.closing_tokens)

    def eta(self, attempt: Response) -> float | None:
        """The eta that was in force then, unless another one is asked for."""
        return self._threshold("eta", attempt.eta)

    def _threshold(self, name: str, then: float) -> float | None:
        if {f"control.{name}", "control.preset"} & self._given:
            return getattr(self.config.control, name)
        return finite_or_none(then)


def replay_run(
    run_dir: Path, episode: str, turn: int | None, overrides: dict[str, str], console: Console
) -> None:
    """List the episodes of a run (`episode` ""), or print one turn by turn, or one turn (`turn`,
    from 0) token by token.

    ConfigError for a run, an episode or a turn that does not exist.
    """
    recording = Recording(run_dir, overrides)
    if not episode:
        _list(recording, console)
        return
    found = next((e for e in recording.episodes() if e.key.id == episode), None)
    if found is None:
        raise ConfigError(
            f"replay: {run_dir} has no episode {episode}; `python run.py replay {run_dir}` lists "
            "them"
        )
    if turn is not None and not 0 <= turn < len(found.turns):
        raise ConfigError(
            f"replay: episode {episode} has turns 0 to {len(found.turns) - 1}, not {turn}"
        )
    console.print(
        f"[bold]{episode}[/]  {_escaped(describe_outcome(found))}, {len(found.turns)} turns: "
        f"{_escaped(found.task)}",
        highlight=False,
    )
    _print_episode(recording, found, turn, console)


def _list(recording: Recording, console: Console) -> None:
    table = Table("episode", "turns", "solved", "cut", "sampled again", box=None)
    for episode in recording.episodes():
        cut = sum(event.kind == "intervene" for t in episode.turns for event in t.kept.events)
        again = sum(len(t.rejected) for t in episode.turns)
        solved = str(episode.drop_reason or ("yes" if episode.success else "no"))
        table.add_row(episode.key.id, str(len(episode.turns)), solved, str(cut), str(again))
    console.print(table)
    if recording.config.control.early_stall:
        console.print(early_line(recording), highlight=False)


def early_line(recording: Recording) -> str:
    """What ending turns early, with the settings of now, would have saved and cost on the turns of
    the run that were complete."""
    c = recording.config.control
    most = recording.config.sampling.max_tokens
    compared = stalls = ended = wrong = saved = 0
    for episode in recording.episodes():
        before: float | None = None
        for turn in episode.turns:
            for attempt in (*turn.rejected, turn.kept):
                eta = recording.eta(attempt)
                replayed = _replay(recording, attempt)
                if (
                    before is None
                    or eta is None
                    or replayed is None
                    or attempt.stop is StopReason.EARLY
                ):
                    continue
                gamma = score_change(turn_score(replayed.scores, c.turn_mean, c.turn_skip), before)
                stall = find_stall(gamma, eta, zero_counts=c.score != "code") is not None
                rule = EarlyStopTest(c.early_stall, before, eta, most, c.turn_mean, c.turn_skip)
                found = rule.observe(replayed.scores)
                compared = compared + 1
                stalls = stalls + stall
                ended = ended + found
                wrong = wrong + (found and not stall)
                saved += attempt.length - 1 - rule.position if found else 0
            score = _score(recording, turn.kept)
            if score is not None:
                before = score
    return (
        f"ended early at {c.early_stall:g} (control.early_stall): {ended} of {compared:,} turns, "
        f"{wrong} of them wrongly, "
        f"{saved:,} tokens saved; {stalls} were stalled in the end"
    )


def _print_episode(
    recording: Recording, episode: Trajectory, only: int | None, console: Console
) -> None:
    before: float | None = None
    for number, turn in enumerate(episode.turns):
        for attempt in (*turn.rejected, turn.kept):
            if only is None or only == number:
                replayed = _replay(recording, attempt)
                kept = "" if attempt is turn.kept else "  [dim]rejected[/]"
                console.print(
                    f"\n[bold]turn {number}[/]{kept}  "
                    f"{_escaped(recording.tokenizer.decode(_ids(attempt)))}",
                    highlight=False,
                )
                for line in explain(attempt, replayed, before, recording):
                    console.print(f"  {line}", highlight=False)
                if only is not None and replayed is not None:
                    console.print(token_table(attempt, replayed, recording.tokenizer))
        score = _score(recording, turn.kept)
        if score is not None:
            before = score


def explain(
    attempt: Response, replayed: ReplayedTurn | None, before: float | None, recording: Recording
) -> list[str]:
    """What control did then and would do now, a line each.

    `before`: the score of the kept turn before.
    """
    if replayed is None:
        return ["not watched: evaluations are not"]
    then = next((event for event in attempt.events if event.kind == "intervene"), None)
    lines = [f"then: {_cut(then)}", f"now:  {_cut(replayed.intervention)}"]
    if then is not None and (
        replayed.intervention is None or replayed.intervention.position > then.position
    ):
        lines.append(
            f"      (what follows token {then.position} was forced: what this rule would have "
            "met there is not known)"
        )
    for event in attempt.events:
        if event.kind == "resample":
            numbers = (
                f", {event.value:.3g} against {event.threshold:.3g}"
                if event.value == event.value
                else ""
            )
            lines.append(f"then: sampled again ({event.reason}{numbers})")
    score = _score(recording, attempt)
    gamma = score_change(score, before)
    if score is not None and gamma is not None:
        against = _verdict(recording, gamma, recording.eta(attempt))
        lines.append(f"turn: score {score:.4f}, changed by {gamma:.3g}: {against}")
    return lines


def _verdict(recording: Recording, gamma: float, eta: float | None) -> str:
    if eta is None:
        return "no eta in force"
    zero_counts = recording.config.control.score != "code"
    if find_stall(gamma, eta, zero_counts=zero_counts) is None:
        return f"not stalled at eta {eta:.3g}"
    return f"stalled at eta {eta:.3g}"


def _cut(decision: object) -> str:
    if decision is None:
        return "not cut"
    said = (
        msgspec.structs.asdict(decision) if isinstance(decision, msgspec.Struct) else vars(decision)
    )
    return (
        f"cut at token {said['position']} ({said['reason']}: {said['value']:.3g} against "
        f"{said['threshold']:.3g})"
    )


def token_table(attempt: Response, replayed: ReplayedTurn, tokenizer: Tokenizer) -> Table:
    """A line a token: what was measured before it was sampled, and what the rule made of that."""
    table = Table(
        "",
        "token",
        "entropy",
        "confidence",
        "top log-prob",
        "score",
        "change",
        "compared",
        "",
        box=None,
    )
    mask = list(attempt.mask)
    last = nan
    decided = replayed.intervention.position if replayed.intervention else -1
    for i, (token, signal) in enumerate(
        zip(_ids(attempt), attempt.signal_table().tolist(), strict=True)
    ):
        score = replayed.scores[i]
        marks = ["forced"] * (not mask[i]) + ["<- cut"] * (i == decided)
        table.add_row(
            str(i),
            Text(repr(tokenizer.decode([token], skip_special_tokens=False))),
            *(_number(x) for x in signal),
            _number(score),
            _number(abs(score - last)),
            _number(none_to_nan(replayed.statistics[i])),
            " ".join(marks),
        )
        last = score
    return table


def _replay(recording: Recording, attempt: Response) -> ReplayedTurn | None:
    if not attempt.signals:
        return None
    return replay(unpack(attempt.tokens, INT32), attempt.signal_table(), recording.rule(attempt))


def _score(recording: Recording, attempt: Response) -> float | None:
    replayed = _replay(recording, attempt)
    if replayed is None:
        return None
    c = recording.config.control
    return turn_score(replayed.scores, c.turn_mean, c.turn_skip)


def _ids(attempt: Response) -> list[int]:
    return unpack(attempt.tokens, INT32).tolist()


def _number(value: float) -> str:
    return "" if value != value else f"{value:.4f}"


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
