"""Progress of a run while it runs: a live panel on a terminal, else plain lines.

`panel`, `status_line` and `time_left` are pure; Progress only decides when to show them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from config import RunSection
from protocol.output import drop_unread_output
from telemetry.analysis.advice import advise_on_demonstrations
from telemetry.format import (
    NO_VALUE,
    describe_figures,
    draw_sparkline,
    format_count,
    format_decimal,
    format_duration,
    format_interval,
    format_percent,
    format_updates,
)
from telemetry.metrics_schema import success_interval, successes_by_set
from telemetry.probes.waits import SHOWN_AFTER_SECONDS, Wait
from telemetry.sinks.metrics_file import Record
from telemetry.state import LOSSES, MAKING_THE_POLICY, Phase, RunState

TRAINING = "training"
"""The phase whose end is the run's goal, in updates and in minutes."""

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines of the same phase."""

WAITS_SHOWN = 3
"""How many waits are shown at once, the longest first."""

RECENT_UPDATES = 10
"""Updates whose mean duration foretells the time left."""

QUEUES = {
    "episodes to train on": "queue_trajectories",
    "to hand out": "queue_leases",
    "turns in flight": "turns_in_flight",
}
"""Depths that the panel shows: their names there, and their gauges."""

BAR_COLUMNS = 40


class Progress:
    """Shows `state` whenever `tick` is called.

    Call it about four times a second, from the thread that changes the state.
    """

    def __init__(
        self,
        state: RunState,
        goal: RunSection,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        batch_episodes: int = 0,
    ) -> None:
        """`batch_episodes`: how many make an update; 0 if nothing is played."""
        self._state = state
        self._goal = goal
        self._clock = clock
        self._batch_episodes = batch_episodes
        self._console = console or Console(file=sys.stdout)
        self._live: Live | None = None
        if self._console.file.isatty() and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._printed_phase = ""
        self._printed_at = 0.0
        self._printed_rollbacks = len(state.rollbacks)
        self._printed_evaluations = list(state.evaluations)
        self._printed_update = _last_update(state).get("update", 0)
        self._printed_phases = len(state.ended_phases)
        self._warned: set[str] = set()
        self._next_wait_warning_s = SHOWN_AFTER_SECONDS  # how long the longest wait is at the next
        self._briefly = drop_unread_output()

    def __enter__(self) -> Self:
        self._briefly.__enter__()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        self._briefly.__exit__(kind, error, traceback)

    def tick(self) -> None:
        """Redraw the panel, or print what is due."""
        now = self._clock()
        self._print_warnings(now)
        self._print_ended_phases(now)
        self._print_evaluations(now)
        if self._live is not None:
            self._print_update(now)
            shown = panel(self._state, self._goal, now, self._batch_episodes)
            self._live.update(shown, refresh=True)
            return
        phase = self._state.phase.name
        if phase != self._printed_phase or now - self._printed_at >= PLAIN_SECONDS:
            self._printed_phase = phase
            self._print_status(now)

    def print(self, text: str) -> None:
        """Print a line of plain text that stays, above the panel where there is one."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._console.file, flush=True)

    def _print_with_time(self, text: str, now: float) -> None:
        minutes, seconds = divmod(int(now - self._state.started), 60)
        self.print(f"[{minutes:3}:{seconds:02}]  {text}")

    def _print_status(self, now: float) -> None:
        self._printed_at = now
        line = status_line(self._state, self._goal, now, self._batch_episodes)
        self._print_with_time(line, now)

    def _print_update(self, now: float) -> None:
        """Leave a line of the newest update above the panel, unless there is one just before."""
        update = _last_update(self._state).get("update", 0)
        is_new = update != self._printed_update and self._state.phase.name == TRAINING
        if is_new and now - self._printed_at >= PLAIN_SECONDS:
            self._printed_update = update
            self._printed_at = now
            self._print_with_time(update_line(self._state, self._goal), now)

    def _print_ended_phases(self, now: float) -> None:
        """Print what phases came to that are over."""
        ended = self._state.ended_phases
        for phase, seconds in ended[self._printed_phases :]:
            figures = describe_figures(phase.figures)
            if figures:
                steps = _describe_steps(phase)
                took = format_duration(seconds)
                self._print_with_time(f"{phase.name} {steps}{figures}, in {took}", now)
        self._printed_phases = len(ended)

    def _print_evaluations(self, now: float) -> None:
        """Print the new evaluations; one of a resumed run may take the place of an equal one."""
        printed = {id(record) for record in self._printed_evaluations}
        for record in self._state.evaluations:
            if id(record) not in printed:
                self._print_with_time(evaluation_line(record), now)
                if self._live is None:
                    self._printed_at = now
        self._printed_evaluations = list(self._state.evaluations)

    def _print_warnings(self, now: float) -> None:
        """Warn of signs of a collapse, of settings that do not fit, of failures and of waits.

        All but waits are told of once.
        """
        for name, words in phase_warnings(self._state, self._goal, now).items():
            self._warn_once(name, words)
        for name, words in self._state.signs.items():
            self._warn_once(name, f"{words} (docs/guides/reading-a-run.md, Signs of a collapse)")
        for name, words in self._state.advice.items():
            self._warn_once(name, words)
        for name, words in self._state.failures.items():
            self._warn_once(
                name, f"episode {words} (dropped, as others will be: they are only counted)"
            )
        self._print_waits()
        rollbacks = self._state.rollbacks
        for record in rollbacks[self._printed_rollbacks :]:
            self.print(
                f"after update {record['update']} training went back to the weights of update "
                f"{record['rolled_back_to']:g}"
            )
        self._printed_rollbacks = len(rollbacks)

    def _warn_once(self, name: str, words: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            self.print(f"warning: {name}: {words}")

    def _print_waits(self) -> None:
        """Print the waits after a minute, and again each time that one has taken twice as long."""
        waits = self._state.long_waits(self._clock())
        if not waits:
            self._next_wait_warning_s = SHOWN_AFTER_SECONDS
            return
        longest_s = max(wait.seconds for wait in waits)
        if longest_s < self._next_wait_warning_s:
            return
        self._next_wait_warning_s = 2 * longest_s
        for line in wait_lines(waits):
            self.print(f"waiting: {line}")


def phase_warnings(state: RunState, goal: RunSection, now: float) -> dict[str, str]:
    """{what is wrong: words} of the phases before training: what they take, and what is lost."""
    warnings = {}
    for phase in [*(phase for phase, _ in state.ended_phases), state.phase]:
        won = phase.figures.get("won")
        if won is not None and phase.done == phase.of:
            warnings["demonstrations"] = advise_on_demonstrations(won, phase.done or 0.0)
    left_s = state.phase.seconds_left(now)
    if state.phase.name in MAKING_THE_POLICY and left_s is not None:
        ends_s = state.wall_seconds(now) + left_s
        if ends_s > goal.max_seconds():
            warnings["time"] = (
                f"the {state.phase.name} alone ends after about {format_duration(ends_s)}, and "
                f"run.max_minutes ({goal.max_minutes:g}) leaves no update then; give it more "
                "(--minutes)"
            )
    return {name: words for name, words in warnings.items() if words}


def time_left(state: RunState, goal: RunSection, now: float) -> float | None:
    """Seconds until training ends, by the pace of the last updates and the limits.

    None before the second update, and in any other phase.
    """
    updates = state.updates[-RECENT_UPDATES - 1 :]
    if state.phase.name != TRAINING or len(updates) < 2:
        return None
    first = updates[0]
    last = updates[-1]
    elapsed_s = last["wall_seconds"] - first["wall_seconds"]
    since_update_s = state.wall_seconds(now) - last["wall_seconds"]
    seconds_per_update = elapsed_s / (last["update"] - first["update"])
    limits_s = [
        (goal.max_updates - last["update"]) * seconds_per_update - since_update_s,
        goal.max_seconds() - state.wall_seconds(now),
    ]
    tokens = last.get("training_tokens") or 0
    new_tokens = tokens - (first.get("training_tokens") or 0)
    if goal.max_tokens and new_tokens:
        missing_tokens = goal.max_tokens - tokens
        limits_s.append(missing_tokens * elapsed_s / new_tokens - since_update_s)
    return max(0.0, min(limits_s))


def status_line(state: RunState, goal: RunSection, now: float, batch_episodes: int = 0) -> str:
    """The phase and the numbers that matter in it, on one line without any markup."""
    if state.phase.name != TRAINING or not state.updates:
        words = f"{state.phase.name} {_describe_phase(state, now, batch_episodes)}"
        return f"{words}{_trouble(state, now)}"
    last = state.updates[-1]
    parts = [
        f"update {last['update']}/{goal.max_updates}",
        f"success {format_percent(last.get('success'))}",
        f"reward {format_decimal(last.get('reward'))}",
        f"valid {format_percent(last.get('valid_action_rate'))}",
        f"age {format_decimal(last.get('token_age_mean'))}",
        f"{format_count(state.generated_per_second(now))} tokens/s",
        f"thinking cut {format_count(state.total('interventions'))}",
        f"sampled again {format_count(state.total('resamples'))}",
    ]
    left_s = time_left(state, goal, now)
    if left_s is not None:
        parts.append(f"{format_duration(left_s)} left")
    return f"{TRAINING}  " + "  ".join(parts) + _trouble(state, now)


def update_line(state: RunState, goal: RunSection) -> str:
    """The newest update in a line that fits a terminal; the panel below says the rest."""
    last = _last_update(state)
    return (
        f"update {last['update']}/{goal.max_updates}  success {format_percent(last.get('success'))}"
        f"  reward {format_decimal(last.get('reward'))}"
        f"  valid actions {format_percent(last.get('valid_action_rate'))}"
    )


def wait_lines(waits: Sequence[Wait]) -> list[str]:
    """The first waits, one on a line, and how many more there are."""
    lines = [
        f"{wait.source} waits {format_duration(wait.seconds)} for {wait.what}"
        for wait in waits[:WAITS_SHOWN]
    ]
    if len(waits) > WAITS_SHOWN:
        lines.append(f"and {len(waits) - WAITS_SHOWN} more")
    return lines


def dropped_line(state: RunState) -> str:
    """How many episodes failed so far, by reason; empty where none did.

    Others are dropped as a matter of course: at the end of a run, say.
    """
    drops = state.drops_so_far()
    return ", ".join(f"{drops[reason]} {reason}" for reason in LOSSES if drops.get(reason))


def evaluation_line(record: Record) -> str:
    """An evaluation's result on one line."""
    words = f"held-out success {format_percent(record.get('success'))}"
    interval = success_interval(record)
    if interval is not None:
        words += f" ({format_interval(*interval)})"
    games = format_count(record.get("episodes"))
    line = f"{words} after {format_updates(record['update'])} (games: {games})"
    return "; ".join([line, *set_words(record)])


def set_words(evaluation: Record) -> list[str]:
    """Each named set of an evaluation with its success."""
    return [
        f"{name} {format_percent(success)}"
        for name, success in successes_by_set(evaluation).items()
    ]


def panel(state: RunState, goal: RunSection, now: float, batch_episodes: int = 0) -> RenderableType:
    """Everything at a glance."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    phase = state.phase
    words = escape(_describe_phase(state, now, batch_episodes))
    grid.add_row("phase", f"[bold]{escape(phase.name)}[/bold]  {words}")
    if phase.name != TRAINING and phase.of:
        grid.add_row("", _draw_bar(phase.done or 0.0, phase.of))
    if state.updates or phase.name == TRAINING:
        _add_update_rows(grid, state, goal, now)
    _add_result_rows(grid, state)
    if "generated_tokens" in state.gauges:
        _add_token_rows(grid, state, now)
    depths = _queue_depths(state)
    if depths:
        grid.add_row("queues", "   ".join(depths))
    dropped = dropped_line(state)
    if dropped:
        grid.add_row("dropped", f"[red]{escape(dropped)}[/red]")
    for line in wait_lines(state.long_waits(now)):
        grid.add_row("waiting", f"[yellow]{escape(line)}[/yellow]")
    return Panel(grid, title="foray", subtitle=format_duration(now - state.started), width=78)


def _last_update(state: RunState) -> Record:
    return state.updates[-1] if state.updates else {}


def _add_update_rows(grid: Table, state: RunState, goal: RunSection, now: float) -> None:
    done = _last_update(state).get("update", 0)
    words = f"{done}/{goal.max_updates}"
    left_s = time_left(state, goal, now)
    if left_s is not None:
        words += f"  {format_duration(left_s)} left"
    grid.add_row("update", words)
    grid.add_row("", _draw_bar(done, goal.max_updates))


def _add_result_rows(grid: Table, state: RunState) -> None:
    last = _last_update(state)
    evaluations = state.evaluations
    if evaluations or last:
        first_and_last = dict.fromkeys((0, len(evaluations) - 1)) if evaluations else ()
        shares = [format_percent(evaluations[i].get("success")) for i in first_and_last]
        held_out = " -> ".join(shares) or NO_VALUE
        training = format_percent(last.get("success"))
        curve = draw_sparkline([record.get("success") or 0.0 for record in evaluations])
        words = f"held-out [bold]{held_out}[/bold] {curve}   training {training}"
        grid.add_row("success", words)
    sets = set_words(evaluations[-1]) if evaluations else []
    if sets:
        grid.add_row("sets", "   ".join(sets))
    if last:
        reward = format_decimal(last.get("reward"))
        valid = format_percent(last.get("valid_action_rate"))
        cut_off = format_percent(last.get("truncated_share"))
        grid.add_row("reward", f"{reward}   valid actions {valid}   turns cut off {cut_off}")
        mean_age = format_decimal(last.get("token_age_mean"))
        oldest = format_count(last.get("token_age_max"))
        grid.add_row("token age", f"{mean_age} versions on average, {oldest} at most")


def _add_token_rows(grid: Table, state: RunState, now: float) -> None:
    generated = format_count(state.generated_per_second(now))
    trained = format_count(_last_update(state).get("trained_tokens_per_second"))
    grid.add_row("tokens/s", f"generated {generated}   trained {trained}")
    interventions = format_count(state.total("interventions"))
    resamples = format_count(state.total("resamples"))
    words = f"thinking cut {interventions} times   {resamples} turns sampled again"
    grid.add_row("control", words)


def _queue_depths(state: RunState) -> list[str]:
    depths = []
    for name, gauge in QUEUES.items():
        depth = state.gauges.get(gauge)
        if isinstance(depth, int | float):
            depths.append(f"{name} {depth:,.0f}")
    return depths


def _trouble(state: RunState, now: float) -> str:
    """The drops and the longest wait, for a status line; empty where there is neither."""
    words = ""
    dropped = dropped_line(state)
    if dropped:
        words += f"  dropped {dropped}"
    for line in wait_lines(state.long_waits(now)[:1]):
        words += f"  waiting: {line}"
    return words


def _describe_phase(state: RunState, now: float, batch_episodes: int) -> str:
    """How far the phase is, what it came to, how long it lasts and will last."""
    phase = state.phase
    words = format_duration(now - phase.started)
    if phase.name == TRAINING:
        here = state.gauges.get("queue_trajectories")
        if batch_episodes and isinstance(here, int | float):
            words = f"{here:,.0f} episodes here, an update takes {batch_episodes:,}   {words}"
        return words
    figures = describe_figures(phase.figures)
    if figures:
        words = f"{figures}  {words}"
    left_s = phase.seconds_left(now)
    if left_s and left_s >= 1:
        words += f", about {format_duration(left_s)} left"
    return f"{_describe_steps(phase)}{words}"


def _describe_steps(phase: Phase) -> str:
    if phase.done is None:
        return ""
    if not phase.of:
        return f"{phase.done:,.0f}  "
    return f"{phase.done:,.0f}/{phase.of:,.0f}  "


def _draw_bar(done: float, total: float) -> Text:
    """How much is done, as a line that shows without colors, too."""
    filled = round(BAR_COLUMNS * min(1.0, done / max(total, 1)))
    return Text.assemble(("━" * filled, "bar.complete"), ("─" * (BAR_COLUMNS - filled), "bar.back"))
