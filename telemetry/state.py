"""The state of a run as its messages tell it: folded from Stats, read by the metrics file, the
progress display, the summary.

Pure: no files, no clock of its own. Every call that needs the time gets it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from config import LearnerSection
from protocol.messages import Stats
from telemetry.analysis.collapse import SignWatch
from telemetry.metrics_schema import METRICS, TOTAL_SUFFIX, aggregation_of
from telemetry.probes.waits import WaitBook
from telemetry.sinks.metrics_file import Record, add_record, last_wall_seconds, roll_back

Value = float | str | None

OWN_SOURCE = "supervisor"
"""Source of what the process itself reports that folds the messages."""

RATE_WINDOW = 30.0
"""Seconds over which the live tokens/s is taken."""


ESS_FLOOR = LearnerSection().ess_floor


@dataclass
class Phase:
    """What the run is doing. `of` is None where the end is unknown."""

    name: str
    started: float
    done: float | None = None
    of: float | None = None


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
        self.total += value - last if value >= last else value
        self._last[source] = value
        self.gauged = True

    def add(self, share: float) -> None:
        """An update's own share; counts only where nobody sends the count itself."""
        if not self.gauged:
            self.total += share

    def take(self) -> float:
        """What came since the last call."""
        share = self.total - self._mark
        self._mark = self.total
        return share


class RunState:
    """Folds messages into records. `now` is any clock in seconds, the same for all calls."""

    def __init__(
        self, now: float, earlier: list[Record] | None = None, ess_floor: float = ESS_FLOOR
    ) -> None:
        """`earlier` are the records of the run that this one resumes; `ess_floor` is the setting of
        the learner."""
        self._ess_floor = ess_floor
        self.started = now
        self.phase = Phase("starting", now)
        self.phase_seconds: dict[str, float] = {}
        self.gauges: dict[str, Value] = {}
        self.counters: dict[str, Counter] = {
            name: Counter() for name, known in METRICS.items() if known.aggregation == "total"
        }
        self.records: list[Record] = []
        self.updates: list[Record] = []
        self.evaluations: list[Record] = []
        self.rollbacks: list[Record] = []
        """The updates after which training went back to an earlier checkpoint."""
        self._watch = SignWatch(ess_floor)
        self._signs: dict[str, str] = {}
        self.signs: dict[str, str] = {}
        """Early signs of a collapse, each as it was when it first showed: name -> numbers."""
        self.failures: dict[str, str] = {}
        """Reasons why episodes failed since this process started, each with what the first one
        says."""
        self.waits = WaitBook()
        """What the processes wait for."""
        self._drops: dict[
            str, int
        ] = {}  # since this process started, by reason, as the learner counts them
        self._means: dict[str, tuple[float, int]] = {}
        self._peaks: dict[str, float] = {}
        self._generated: deque[tuple[float, float]] = deque(maxlen=1000)
        for record in earlier or []:
            self._keep(record)
        self._offset = last_wall_seconds(self.records)
        self._last_update = now
        for record in self.records:
            for name, counter in self.counters.items():
                total = record.get(name + TOTAL_SUFFIX) or 0.0
                counter.total = max(counter.total, total)
        for counter in self.counters.values():
            counter.take()
        self._dropped_before = self.dropped_by_reason()

    def observe(self, stats: Stats, now: float) -> Record | None:
        """Takes one message; returns the finished record when it was an update or an evaluation."""
        if stats.source != OWN_SOURCE:
            self.waits.hear(stats.source, now)
        match stats.event:
            case "waiting":
                self.waits.take(
                    stats.source,
                    {what: float(seconds) for what, seconds in stats.values.items()},
                    now,
                )
            case "drops":
                self._drops = {reason: int(count) for reason, count in stats.values.items()}
            case "phase":
                self._enter(stats.values, now)
            case "gauge":
                for name, value in stats.values.items():
                    self._gauge(stats.source, name, value, now)
            case "dropped":
                self._add(stats.values)
            case "failures":
                self.failures = {
                    name: str(words) for name, words in stats.values.items()
                } | self.failures
            case "update":
                self._take_back(stats.values)
                record = self._record(self._update(stats.values, now))
                self.signs = self._signs | self.signs
                return record
            case "evaluation":
                return self._record(self._evaluation(stats.values, now))
        return None

    # --- what readers ask

    def wall_seconds(self, now: float) -> float:
        """Since the run started, the time before a resume included."""
        return self._offset + now - self.started

    def total(self, name: str) -> float:
        """The count called `name` since the run started."""
        return self.counters[name].total if name in self.counters else 0.0

    def dropped_by_reason(self) -> dict[str, int]:
        """Episodes that were not trained on, for each reason that occurred."""
        counts = {
            name.removeprefix("dropped_"): int(c.total)
            for name, c in self.counters.items()
            if name.startswith("dropped_")
        }
        return {reason: count for reason, count in counts.items() if count}

    def drops_so_far(self) -> dict[str, int]:
        """Episodes dropped up to now, by reason: those that an update has told of, or the learner
        has counted since, whichever is more."""
        told = self.dropped_by_reason()
        live = {
            reason: self._dropped_before.get(reason, 0) + count
            for reason, count in self._drops.items()
        }
        return {reason: max(told.get(reason, 0), live.get(reason, 0)) for reason in told | live}

    def generated_per_second(self, now: float) -> float:
        """Tokens/s of generation over the last RATE_WINDOW seconds."""
        recent = [(then, total) for then, total in self._generated if now - then <= RATE_WINDOW]
        if len(recent) < 2 or now <= recent[0][0]:
            return 0.0
        return (recent[-1][1] - recent[0][1]) / (now - recent[0][0])

    def seconds_by_phase(self, now: float) -> dict[str, float]:
        """How long each phase took, the running one up to now."""
        seconds = dict(self.phase_seconds)
        seconds[self.phase.name] = seconds.get(self.phase.name, 0.0) + now - self.phase.started
        return seconds

    # --- how messages are folded

    def _enter(self, values: dict[str, Value], now: float) -> None:
        name = str(values.get("phase"))
        if name != self.phase.name:
            self.phase_seconds = self.seconds_by_phase(now)
            self.phase = Phase(name, now)
        self.phase.done = values.get("done", self.phase.done)
        self.phase.of = values.get("of", self.phase.of)

    def _gauge(self, source: str, name: str, value: Value, now: float) -> None:
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
                sum_, count = self._means.get(name, (0.0, 0))
                self._means[name] = (sum_ + value, count + 1)
            case "peak":
                self._peaks[name] = max(self._peaks.get(name, 0.0), value)

    def _take_back(self, values: dict[str, Value]) -> None:
        """What a crash has lost counts no more, where counts are sums over updates: it is done
        again."""
        left = roll_back(self.records, {"kind": "update", "update": int(values.get("update") or 0)})
        if len(left) == len(self.records):
            return
        for name, counter in self.counters.items():
            if not counter.gauged and counter.total:
                counter.total = max(
                    (record.get(name + TOTAL_SUFFIX) or 0.0 for record in left), default=0.0
                )
                counter.take()

    def _update(self, values: dict[str, Value], now: float) -> Record:
        record: Record = {"kind": "update", "update": 0, "wall_seconds": self.wall_seconds(now)}
        record |= {
            name: value
            for name, value in self.gauges.items()
            if aggregation_of(name) in ("latest", "value")
        }
        record |= {name: sum_ / count for name, (sum_, count) in self._means.items()}
        record |= self._peaks
        record |= values
        self._add(values)
        for name, counter in self.counters.items():
            if counter.gauged or name in values:
                record[name], record[name + TOTAL_SUFFIX] = counter.take(), counter.total
        seconds = now - self._last_update
        for name in ("generated_tokens", "trained_tokens"):
            if name in record and seconds > 0:
                record[f"{name}_per_second"] = record[name] / seconds
        self._last_update = now
        self._means.clear()
        self._peaks.clear()
        return record

    def _add(self, shares: dict[str, Value]) -> None:
        for name, counter in self.counters.items():
            if _is_number(shares.get(name)):
                counter.add(shares[name])

    def _evaluation(self, values: dict[str, Value], now: float) -> Record:
        record = {
            "kind": "evaluation",
            "update": 0,
            "wall_seconds": self.wall_seconds(now),
        } | values
        if _is_number(tokens := values.get("evaluation_tokens")):
            counter = self.counters["evaluation_tokens"]
            counter.add(tokens)
            record["evaluation_tokens_total"] = counter.total
            if (
                generated := self.counters["generated_tokens"]
            ).gauged:  # after the last update, nothing else would tell a resumed run
                record["generated_tokens_total"] = generated.total
        return record

    def _record(self, record: Record) -> Record:
        record = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        record["update"] = int(record["update"] or 0)
        self._keep(record)
        return record

    def _keep(self, record: Record) -> None:
        """Add a record to what readers ask for: anew if it undoes others, which is rare."""
        new = [record]
        if add_record(self.records, record):
            new = self.records
            self.updates = []
            self.evaluations = []
            self.rollbacks = []
            self._watch = SignWatch(self._ess_floor)
        for one in new:
            if one["kind"] == "evaluation":
                self.evaluations.append(one)
                continue
            self.updates.append(one)
            self._signs = self._watch.observe(one)
            if one.get("rolled_back_to") is not None:
                self.rollbacks.append(one)


def _role(source: str) -> str:
    """The kind of process that `source` is: "actor-12" is one of the actors, "learner-1" a
    learner."""
    role = source.partition("-")[0]
    return "actors" if role == "actor" else role


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
