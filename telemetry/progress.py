"""What a run shows while it runs: a live panel on a terminal, else plain lines.

`panel`, `status_line` and `time_left` are pure; Progress only decides when to show them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from math import inf
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from config import RunSection
from protocol.output import waiting_briefly
from telemetry.format import count, decimal, duration, percent
from telemetry.probes.waits import SHOWN_AFTER_SECONDS, Wait
from telemetry.sinks.metrics_file import Record
from telemetry.state import RunState

TRAINING = "training"
"""The phase whose end is the run's goal, in updates and in minutes."""

PLAIN_SECONDS = 10.0
"""Between two plain lines of the same phase."""

WAITS_SHOWN = 3
"""How many waits are shown at once, the longest first."""

RECENT_UPDATES = 10
"""Updates whose mean duration foretells the time left."""


class Progress:
    """Shows `state` whenever `tick` is called; call it about four times a second, from the thread
    that changes the state."""

    def __init__(
        self,
        state: RunState,
        goal: RunSection,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._goal = goal
        self._clock = clock
        self._console = console or Console(file=sys.stdout)
        file = self._console.file
        self._live: Live | None = None
        if file.isatty() and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._shown_phase = ""
        self._shown_rollbacks = len(state.rollbacks)
        self._shown_evaluations = list(state.evaluations)
        self._shown_at = 0.0
        self._warned: set[str] = set()
        self._tell_waits_from = (
            SHOWN_AFTER_SECONDS  # how long the longest wait is when people are told of it next
        )
        self._briefly = waiting_briefly()

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
        """Redraws the panel, or prints what is due."""
        now = self._clock()
        if self._live is not None:
            self._warn()
            self._live.update(panel(self._state, self._goal, now), refresh=True)
            return
        self._warn()
        evaluations = self._state.evaluations
        if evaluations and (
            not self._shown_evaluations or evaluations[-1] is not self._shown_evaluations[-1]
        ):
            shown = {
                id(record) for record in self._shown_evaluations
            }  # one of a resumed run takes the place of an equal one
            for record in evaluations:
                if id(record) not in shown:
                    self.print(f"{_clock_text(self._state, now)}  {evaluation_line(record)}")
            self._shown_evaluations = list(evaluations)
        if self._state.phase.name != self._shown_phase or now - self._shown_at >= PLAIN_SECONDS:
            self._shown_phase = self._state.phase.name
            self._shown_at = now
            self.print(
                f"{_clock_text(self._state, now)}  {status_line(self._state, self._goal, now)}"
            )

    def _warn(self) -> None:
        """Of each early sign of a collapse, and of each reason why episodes fail, once."""
        signs = {
            name: f"{words} (docs/guides/reading-a-run.md, Signs of a collapse)"
            for name, words in self._state.signs.items()
        }
        failures = self._state.failures.items()
        failed = {
            name: f"episode {words} (dropped, as others will be: they are only counted)"
            for name, words in failures
        }
        for name, words in (signs | failed).items():
            if name not in self._warned:
                self._warned.add(name)
                self.print(f"warning: {name}: {words}")
        self._tell_waits()
        rollbacks = self._state.rollbacks
        for record in rollbacks[self._shown_rollbacks :]:
            self.print(
                f"after update {record['update']} training went back to the weights of update "
                f"{record['rolled_back_to']:g}"
            )
        self._shown_rollbacks = len(rollbacks)

    def _tell_waits(self) -> None:
        """Say what is waited for after a minute, and again each time that it has taken twice as
        long."""
        waits = self._state.waits.long_waits(self._clock())
        if not waits:
            self._tell_waits_from = SHOWN_AFTER_SECONDS
            return
        longest = max(wait.seconds for wait in waits)
        if longest < self._tell_waits_from:
            return
        self._tell_waits_from = 2 * longest
        for line in wait_lines(waits):
            self.print(f"waiting: {line}")

    def print(self, text: str) -> None:
        """A line of plain text that stays, above the panel where there is one."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._console.file, flush=True)


def time_left(state: RunState, goal: RunSection, now: float) -> float | None:
    """Seconds until training ends, from the pace of the last updates and the limits; None before
    the first update."""
    updates = state.updates[-RECENT_UPDATES - 1 :]
    if state.phase.name != TRAINING or len(updates) < 2:
        return None
    pace = (updates[-1]["wall_seconds"] - updates[0]["wall_seconds"]) / (
        updates[-1]["update"] - updates[0]["update"]
    )
    behind = state.wall_seconds(now) - updates[-1]["wall_seconds"]
    by_updates = (goal.updates - updates[-1]["update"]) * pace - behind
    by_minutes = goal.minutes * 60 - state.wall_seconds(now)
    return max(0.0, min(by_updates, by_minutes, _by_tokens(updates, goal.tokens) - behind))


def _by_tokens(updates: Sequence[Record], limit: int) -> float:
    """Seconds from the last update until so many tokens have been generated for batches."""
    first = updates[0]
    last = updates[-1]
    if not limit:
        return inf
    pace = (last["training_tokens"] - first["training_tokens"]) / (
        last["wall_seconds"] - first["wall_seconds"]
    )
    return (limit - last["training_tokens"]) / pace


def status_line(state: RunState, goal: RunSection, now: float) -> str:
    """The phase and the numbers that matter in it, on one line without any markup."""
    phase = state.phase
    last = state.updates[-1] if state.updates else {}
    if phase.name != TRAINING or not last:
        return f"{phase.name} {_steps(state)}{duration(now - phase.started)}{_trouble(state, now)}"
    left = time_left(state, goal, now)
    parts = [
        f"update {last['update']}/{goal.updates}",
        f"success {percent(last.get('success'))}",
        f"reward {decimal(last.get('reward'))}",
        f"valid {percent(last.get('valid_action_rate'))}",
        f"age {decimal(last.get('token_age_mean'))}",
        f"{count(state.generated_per_second(now))} tokens/s",
        f"interventions {count(state.total('interventions'))}",
        f"resamples {count(state.total('resamples'))}",
    ]
    if left is not None:
        parts.append(f"{duration(left)} left")
    return f"{TRAINING}  " + "  ".join(parts) + _trouble(state, now)


def wait_lines(waits: Sequence[Wait]) -> list[str]:
    """The first waits, one on a line, and how many more there are."""
    lines = [
        f"{wait.source} waits {duration(wait.seconds)} for {wait.what}"
        for wait in waits[:WAITS_SHOWN]
    ]
    if len(waits) > WAITS_SHOWN:
        lines.append(f"and {len(waits) - WAITS_SHOWN} more")
    return lines


def dropped_line(state: RunState) -> str:
    """How many episodes were dropped so far, by reason; empty where none was."""
    return ", ".join(f"{count} {reason}" for reason, count in state.drops_so_far().items() if count)


def _trouble(state: RunState, now: float) -> str:
    """What a status line says of drops and of the longest wait; empty where there is neither."""
    dropped = dropped_line(state)
    parts = [f"dropped {dropped}"] if dropped else []
    parts += [f"waiting: {line}" for line in wait_lines(state.waits.long_waits(now)[:1])]
    return "".join(f"  {part}" for part in parts)


def evaluation_line(record: Record) -> str:
    """An evaluation's result on one line."""
    return (
        f"held-out success {percent(record.get('success'))} after {record['update']} updates "
        f"({count(record.get('episodes'))} games)"
    )


def panel(state: RunState, goal: RunSection, now: float) -> RenderableType:
    """Everything at a glance."""
    updates = state.updates
    evaluations = state.evaluations
    last = updates[-1] if updates else {}
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    phase = state.phase
    grid.add_row(
        "phase",
        f"[bold]{escape(phase.name)}[/bold]  {_steps(state)}{duration(now - phase.started)}",
    )
    if phase.name != TRAINING and phase.of:
        grid.add_row("", ProgressBar(total=phase.of, completed=phase.done or 0.0, width=40))
    if updates or phase.name == TRAINING:
        left = time_left(state, goal, now)
        done = last.get("update", 0)
        grid.add_row(
            "update",
            f"{done}/{goal.updates}  {duration(left) + ' left' if left is not None else ''}",
        )
        grid.add_row("", ProgressBar(total=max(goal.updates, 1), completed=done, width=40))
    if evaluations or last:
        curve = " -> ".join(percent(record.get("success")) for record in _ends(evaluations))
        grid.add_row(
            "success",
            f"held-out [bold]{curve or '-'}[/bold]   training {percent(last.get('success'))}",
        )
    if last:
        grid.add_row(
            "reward",
            f"{decimal(last.get('reward'))}   valid actions "
            f"{percent(last.get('valid_action_rate'))}",
        )
        grid.add_row(
            "token age",
            f"mean {decimal(last.get('token_age_mean'))}   max {count(last.get('token_age_max'))}",
        )
    if "generated_tokens" in state.gauges:
        rates = (
            f"generated {count(state.generated_per_second(now))}   trained "
            f"{count(last.get('trained_tokens_per_second'))}"
        )
        grid.add_row("tokens/s", rates)
        grid.add_row(
            "control",
            f"interventions {count(state.total('interventions'))}   resamples "
            f"{count(state.total('resamples'))}",
        )
    queues = {
        "trajectories": "queue_trajectories",
        "leases": "queue_leases",
        "turns in flight": "turns_in_flight",
    }
    depths = [
        f"{name} {state.gauges[gauge]:,.0f}"
        for name, gauge in queues.items()
        if isinstance(state.gauges.get(gauge), int | float)
    ]
    if depths:
        grid.add_row("queues", "   ".join(depths))
    dropped = dropped_line(state)
    if dropped:
        grid.add_row("dropped", f"[red]{escape(dropped)}[/red]")
    for line in wait_lines(state.waits.long_waits(now)):
        grid.add_row("waiting", f"[yellow]{escape(line)}[/yellow]")
    return Panel(grid, title="foray", subtitle=f"{duration(now - state.started)}", width=78)


def _ends(evaluations: list[Record]) -> list[Record]:
    return evaluations if len(evaluations) < 2 else [evaluations[0], evaluations[-1]]


def _steps(state: RunState) -> str:
    phase = state.phase
    if phase.done is None:
        return ""
    return f"{phase.done:,.0f}/{phase.of:,.0f}  " if phase.of else f"{phase.done:,.0f}  "


def _clock_text(state: RunState, now: float) -> str:
    seconds = int(now - state.started)
    return f"[{seconds // 60:3}:{seconds % 60:02}]"
