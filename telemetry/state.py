"""The state of a run as its messages tell it: folded from Stats, read by all who show it.

Pure: no files, no clock of its own. Every call that needs the time gets it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TypeGuard

from config import LearnerSection
from protocol.messages import FAILURES, DropReason, Stats
from telemetry.analysis.advice import find_advice
from telemetry.analysis.collapse import SignWatch
from telemetry.analysis.pace import phase_seconds_left
from telemetry.metrics_schema import METRICS, TOTAL_SUFFIX, aggregation_of
from telemetry.probes.waits import FIRST_WEIGHTS, Wait, WaitBook
from telemetry.sinks.metrics_file import Record, add_record, last_wall_seconds, roll_back

Value = float | str | None

DROPPED_PREFIX = "dropped_"
"""Begin of the names of counts of episodes that were not trained on."""

OWN_SOURCE = "supervisor"
"""Source of what the process itself reports that folds the messages."""

LOSSES = tuple(map(str, (*FAILURES, DropReason.STALE)))
"""Reasons for which an episode is dropped that was meant to be trained on."""

PHASE_KEYS = ("phase", "done", "of")
"""Values of a phase's messages that are no figures of it."""

BUILDING = "building the policy"
"""Phase before the learner's first, in which the policy that it begins with is made."""

MAKING_THE_POLICY = ("demonstrations", "conversations", "warm start")
"""Phases of the learner before it has weights for anybody, which say when they end."""

RATE_WINDOW = 30.0
"""Seconds over which the live tokens/s is taken."""

MIN_EFFECTIVE_SAMPLE_SIZE = LearnerSection().min_effective_sample_size
"""Effective sample size below which it is a sign of a collapse, unless a run says otherwise."""


def phase_stats(
    source: str,
    phase: str,
    done: float | None = None,
    total: float | None = None,
    **figures: float,
) -> Stats:
    """Make the message of a phase: how far it is, if that can be said, and what it came to."""
    values: dict[str, Value] = {"phase": phase, **figures}
    if total:
        values |= {"done": done, "of": total}
    return Stats(source=source, event="phase", values=values)


@dataclass
class Phase:
    """A phase of the run, and how far it is. `of` is None where the end is unknown."""

    name: str
    started: float
    done: float | None = None
    of: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    """Figures that the phase has come to, by name: the loss of a warm start, say."""

    def seconds_left(self, now: float) -> float | None:
        """Seconds until the phase is over, by its pace so far; None where that is not known."""
        return phase_seconds_left(self.done, self.of, now - self.started)


@dataclass
class Counter:
    """A count since the run started, from processes that each count since they started."""

    total: float = 0.0
    gauged: bool = False
    _last: dict[str, float] = field(default_factory=dict)
    _mark: float = 0.0

    def observe(self, source: str, value: float) -> None:
        """`source` has counted up to `value`; less than before means that it was restarted."""
        last = self._last.get(source, 0.0)
        if value < last:
            last = 0.0
        self.total += value - last
        self._last[source] = value
        self.gauged = True

    def add(self, share: float) -> None:
        """Count an update's own share, if nobody sends the count itself."""
        if not self.gauged:
            self.total += share

    def take(self) -> float:
        """The count since the last call."""
        share = self.total - self._mark
        self._mark = self.total
        return share


class RunState:
    """Folds messages into records. `now` is any clock in seconds, the same for all calls."""

    def __init__(
        self,
        now: float,
        earlier: list[Record] | None = None,
        min_effective_sample_size: float = MIN_EFFECTIVE_SAMPLE_SIZE,
    ) -> None:
        """Begin with the records of an `earlier` run, which this one resumes.

        `min_effective_sample_size` is the learner's setting.
        """
        self._min_effective_sample_size = min_effective_sample_size
        self.started = now
        self.phase = Phase("starting", now)
        self.phase_seconds: dict[str, float] = {}
        self.ended_phases: list[tuple[Phase, float]] = []
        """The phases before this one, each with the seconds that it took."""
        self.gauges: dict[str, Value] = {}
        self.counters: dict[str, Counter] = {
            name: Counter() for name, known in METRICS.items() if known.aggregation == "total"
        }
        self.records: list[Record] = []
        self.updates: list[Record] = []
        self.evaluations: list[Record] = []
        self.rollbacks: list[Record] = []
        """The updates after which training went back to an earlier checkpoint."""
        self._watch = SignWatch(min_effective_sample_size)
        self._signs: dict[str, str] = {}
        self.signs: dict[str, str] = {}
        """Early signs of a collapse, each as it was when it first showed: name -> numbers."""
        self.advice: dict[str, str] = {}
        """Settings that seem wrong, as it first showed: name -> numbers and remedy."""
        self.failures: dict[str, str] = {}
        """Reason why episodes failed since this process started -> the first one's words."""
        self.waits = WaitBook()
        """Waits of all processes."""
        # Since this process started, by reason, as the learner counts them.
        self._drops: dict[str, int] = {}
        self._means: dict[str, tuple[float, int]] = {}
        self._peaks: dict[str, float] = {}
        self._generated: deque[tuple[float, float]] = deque(maxlen=1000)
        for record in earlier or []:
            self._keep(record)
        self._offset = last_wall_seconds(self.records)
        self._last_update = now
        self._restore_counters()
        self._dropped_before = self.dropped_by_reason()

    def _restore_counters(self) -> None:
        """Count on from the totals of the earlier records."""
        for record in self.records:
            for name, counter in self.counters.items():
                total = record.get(name + TOTAL_SUFFIX) or 0.0
                counter.total = max(counter.total, total)
        for counter in self.counters.values():
            counter.take()

    def observe(self, stats: Stats, now: float) -> Record | None:
        """Take one message; returns the finished record when it was an update or an evaluation."""
        if stats.source != OWN_SOURCE:
            self.waits.hear(stats.source, now)
        values = stats.values
        match stats.event:
            case "waiting":
                waits = {what: float(s) for what, s in values.items() if s is not None}
                self.waits.take(stats.source, waits, now)
            case "drops":
                self._drops = {
                    reason: int(count) for reason, count in values.items() if count is not None
                }
            case "phase":
                self._enter_phase(values, now)
            case "gauge":
                for name, value in values.items():
                    self._observe_gauge(stats.source, name, value, now)
            case "dropped":
                self._add_shares(values)
            case "failures":
                for reason, words in values.items():
                    self.failures.setdefault(reason, str(words))
            case "update":
                self._undo_lost_counts(values)
                record = self._keep_finite(self._build_update(values, now))
                self.signs = self._signs | self.signs
                self.advice = find_advice(self.updates, self.evaluations) | self.advice
                return record
            case "evaluation":
                record = self._keep_finite(self._build_evaluation(values, now))
                self.advice = find_advice(self.updates, self.evaluations) | self.advice
                return record
        return None

    # --- what readers ask

    def wall_seconds(self, now: float) -> float:
        """Seconds since the run started, the time before a resume included."""
        return self._offset + now - self.started

    def total(self, name: str) -> float:
        """The count called `name` since the run started."""
        if name not in self.counters:
            return 0.0
        return self.counters[name].total

    def dropped_by_reason(self) -> dict[str, int]:
        """Episodes that were not trained on, for each reason that occurred."""
        counts = {}
        for name, counter in self.counters.items():
            if name.startswith(DROPPED_PREFIX) and int(counter.total):
                counts[name.removeprefix(DROPPED_PREFIX)] = int(counter.total)
        return counts

    def drops_so_far(self) -> dict[str, int]:
        """Episodes dropped up to now, by reason.

        They are those of the updates so far, or those that the learner has counted since, whichever
        is more.
        """
        counts = self.dropped_by_reason()
        for reason, count in self._drops.items():
            live = self._dropped_before.get(reason, 0) + count
            counts[reason] = max(counts.get(reason, 0), live)
        return counts

    def generated_per_second(self, now: float) -> float:
        """Tokens/s of generation over the last RATE_WINDOW seconds."""
        recent = [(then, total) for then, total in self._generated if now - then <= RATE_WINDOW]
        if len(recent) < 2:
            return 0.0
        began, total_then = recent[0]
        _, total_now = recent[-1]
        if now <= began:
            return 0.0
        return (total_now - total_then) / (now - began)

    def seconds_by_phase(self, now: float) -> dict[str, float]:
        """How long each phase took, the running one up to now."""
        seconds = dict(self.phase_seconds)
        seconds[self.phase.name] = seconds.get(self.phase.name, 0.0) + now - self.phase.started
        return seconds

    def long_waits(self, now: float) -> list[Wait]:
        """The waits that people are to be told of, the longest first.

        That others wait for a policy while it is made is no news: its phase says how far it is.
        What was told in an earlier phase may be over with it: whatever is not comes again.
        """
        waits = self.waits.long_waits(now, self.phase.started)
        if self.phase.name not in MAKING_THE_POLICY:
            return waits
        return [wait for wait in waits if wait.what != FIRST_WEIGHTS]

    # --- how messages are folded

    def _enter_phase(self, values: dict[str, Value], now: float) -> None:
        name = str(values.get("phase"))
        if name != self.phase.name:
            self.phase_seconds = self.seconds_by_phase(now)
            self.ended_phases.append((self.phase, now - self.phase.started))
            self.phase = Phase(name, now)
        if "done" in values:
            self.phase.done = _as_number(values["done"])
        if "of" in values:
            self.phase.of = _as_number(values["of"])
        figures = {name: value for name, value in values.items() if name not in PHASE_KEYS}
        self.phase.figures |= {name: value for name, value in figures.items() if _is_number(value)}

    def _observe_gauge(self, source: str, name: str, value: Value, now: float) -> None:
        if name == "loop_lag":
            name = f"loop_lag_{_role(source)}"
        self.gauges[name] = value
        if not _is_number(value):
            return
        match aggregation_of(name):
            case "total":
                self.counters[name].observe(source, value)
                if name == "generated_tokens":
                    self._generated.append((now, self.counters[name].total))
            case "mean":
                total, count = self._means.get(name, (0.0, 0))
                self._means[name] = (total + value, count + 1)
            case "peak":
                self._peaks[name] = max(self._peaks.get(name, 0.0), value)

    def _undo_lost_counts(self, values: dict[str, Value]) -> None:
        """Take back from sums over updates what a crash has lost: it is done again."""
        update = int(values.get("update") or 0)
        remaining = roll_back(self.records, {"kind": "update", "update": update})
        if len(remaining) == len(self.records):
            return
        for name, counter in self.counters.items():
            if counter.gauged or not counter.total:
                continue
            totals = [record.get(name + TOTAL_SUFFIX) or 0.0 for record in remaining]
            counter.total = max(totals, default=0.0)
            counter.take()

    def _build_update(self, values: dict[str, Value], now: float) -> Record:
        record: Record = {"kind": "update", "update": 0, "wall_seconds": self.wall_seconds(now)}
        for name, value in self.gauges.items():
            if aggregation_of(name) in ("latest", "value"):
                record[name] = value
        for name, (total, count) in self._means.items():
            record[name] = total / count
        record |= self._peaks
        record |= values
        self._add_shares(values)
        for name, counter in self.counters.items():
            if counter.gauged or name in values:
                record[name] = counter.take()
                record[name + TOTAL_SUFFIX] = counter.total
        seconds = now - self._last_update
        for name in ("generated_tokens", "trained_tokens"):
            if name in record and seconds > 0:
                record[f"{name}_per_second"] = record[name] / seconds
        self._last_update = now
        self._means.clear()
        self._peaks.clear()
        return record

    def _add_shares(self, shares: dict[str, Value]) -> None:
        for name, counter in self.counters.items():
            share = shares.get(name)
            if _is_number(share):
                counter.add(share)

    def _build_evaluation(self, values: dict[str, Value], now: float) -> Record:
        record: Record = {"kind": "evaluation", "update": 0, "wall_seconds": self.wall_seconds(now)}
        record |= values
        tokens = values.get("evaluation_tokens")
        if _is_number(tokens):
            counter = self.counters["evaluation_tokens"]
            counter.add(tokens)
            record["evaluation_tokens" + TOTAL_SUFFIX] = counter.total
            generated = self.counters["generated_tokens"]
            if generated.gauged:
                # After the last update, nothing else would say it to a resumed run.
                record["generated_tokens" + TOTAL_SUFFIX] = generated.total
        return record

    def _keep_finite(self, record: Record) -> Record:
        """Keep a record, with None for numbers that are not finite; returns it."""
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                record[name] = None
        record["update"] = int(record["update"] or 0)
        self._keep(record)
        return record

    def _keep(self, record: Record) -> None:
        """Add a record to what readers ask for: anew if it undoes others, which is rare."""
        new_records = [record]
        if add_record(self.records, record):
            new_records = self.records
            self.updates = []
            self.evaluations = []
            self.rollbacks = []
            self._watch = SignWatch(self._min_effective_sample_size)
        for new in new_records:
            if new["kind"] == "evaluation":
                self.evaluations.append(new)
                continue
            self.updates.append(new)
            self._signs = self._watch.observe(new)
            if new.get("rolled_back_to") is not None:
                self.rollbacks.append(new)


def _role(source: str) -> str:
    """The kind of process that `source` is: "learner-1" a learner, "actor-12" one of the actors."""
    role = source.partition("-")[0]
    if role == "actor":
        return "actors"
    return role


def _as_number(value: Value) -> float | None:
    """Return a number as it is, and None for a text."""
    if isinstance(value, str):
        return None
    return value


def _is_number(value: Value) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
