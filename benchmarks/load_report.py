"""From what benchmarks.load has seen to its figures."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import NamedTuple

from rich.table import Table

from config import LearnerSection


class Sample(NamedTuple):
    """A look at the processes, one a second."""

    time: float  # seconds since the epoch
    memory: dict[str, float]  # process -> MB that are resident
    cpu: dict[
        str, float
    ]  # process, or "actors" for all of them -> seconds of processor time so far
    gauges: dict[str, float]
    dropped: float  # episodes, so far


CPU = ("controller", "actors", "learner", "engine")


def figures(
    settings: LearnerSection,
    samples: Sequence[Sample],
    actors: Mapping[str, set[int]],
    intake: Mapping,
) -> dict[str, float]:
    """`actors`: kind -> their processes; `intake`: see load_processes.INTAKE."""
    turns = {int(second): count for second, count in sorted(intake["turns"].items())}
    first = min(turns)
    half = _when(turns, sum(turns.values()) / 2)
    stall_begins, stall_ends = intake["stall"]
    before = sum(count for second, count in turns.items() if second + 1 <= stall_begins)
    found = {
        "turns": sum(turns.values()),
        "seconds": max(turns) + 1 - first,
        "turns_per_second": before / max(1.0, int(stall_begins) - first),
        "episodes_in_flight_max": _largest(samples, "episodes_in_flight"),
        "episodes_dropped": samples[-1].dropped,
        "frames_dropped": _largest(samples, "bad_frames"),
    }
    begin, end = (
        next(sample for sample in samples if sample.time >= time) for time in (first, stall_begins)
    )
    between = sum(count for second, count in turns.items() if begin.time <= second < end.time)
    found |= {
        f"{name}_us_per_turn": 1e6 * (end.cpu[name] - begin.cpu[name]) / between for name in CPU
    }
    for process in ("controller", "learner"):
        sizes = [
            (sample.time, sample.memory[process])
            for sample in samples
            if isfinite(sample.memory[process]) and sample.memory[process]
        ]
        at_half = next(size for time, size in sizes if time >= half)
        found[f"{process}_mb_peak"] = max(size for _, size in sizes)
        found[f"{process}_mb_grown"] = sizes[-1][1] - at_half
    delivered = Counter(
        {int(name.split("-")[-2]): count for name, count in intake["episodes"].items()}
    )
    for kind, pids in actors.items():
        counts = sorted(delivered[pid] for pid in pids)
        found |= {
            f"{kind}_actor_min": counts[0],
            f"{kind}_actor_median": statistics.median(counts),
            f"{kind}_actor_max": counts[-1],
        }
    during = [sample for sample in samples if stall_begins <= sample.time <= stall_ends + 1] or [
        samples[-1]
    ]
    found |= {
        "slots": settings.slots(),
        "slots_taken_max": _largest(samples, "slots_taken"),
        "stall_in_flight_first": during[0].gauges.get("episodes_in_flight", nan),
        "stall_in_flight_last": during[-1].gauges.get("episodes_in_flight", nan),
        "stall_queue_trajectories_max": _largest(during, "queue_trajectories"),
        "stall_queue_leases_last": during[-1].gauges.get("queue_leases", nan),
    }
    for process in ("controller", "learner", "actors"):
        name = f"loop_lag_{process}"
        lags = [
            sample.gauges[name]
            for sample in samples
            if sample.time >= first and name in sample.gauges
        ]
        found |= {
            f"{name}_max": max(lags, default=nan),
            f"{name}_median": statistics.median(lags or [nan]),
        }
    return {name: float(value) for name, value in found.items()}


def _when(turns: Mapping[int, int], share: float) -> int:
    """The second in which so many had been delivered."""
    so_far = 0
    for second, count in turns.items():
        so_far += count
        if so_far >= share:
            return second
    raise ValueError(f"fewer turns than {share}")


def _largest(samples: Sequence[Sample], gauge: str) -> float:
    return max((sample.gauges[gauge] for sample in samples if gauge in sample.gauges), default=nan)


def table(found: Mapping[str, float]) -> Table:
    """For people."""
    shown = Table("", "", title="controller and learner under load")
    f = found
    shown.add_row(
        "turns/s before the stall",
        f"{f['turns_per_second']:,.0f} ({f['turns']:,.0f} turns in all, {f['seconds']:,.0f} s)",
    )
    shown.add_row(
        "processor time of a turn",
        ", ".join(f"{name} {f[f'{name}_us_per_turn']:,.0f} us" for name in CPU),
    )
    shown.add_row("episodes in flight, most", f"{f['episodes_in_flight_max']:,.0f}")
    for process in ("controller", "learner"):
        shown.add_row(
            f"memory of the {process}",
            f"at most {f[f'{process}_mb_peak']:,.0f} MB; over the second half of the turns "
            f"{f[f'{process}_mb_grown']:+,.1f} MB",
        )
    for kind in ("slow", "fast"):
        counts = [f[f"{kind}_actor_{which}"] for which in ("min", "median", "max")]
        shown.add_row(
            f"episodes of a {kind} actor",
            f"{counts[0]:,.0f} to {counts[2]:,.0f} (median {counts[1]:,.0f})",
        )
    shown.add_row(
        "groups admitted, most", f"{f['slots_taken_max']:,.0f} of (S+1) P = {f['slots']:,.0f}"
    )
    shown.add_row(
        "while the learner stalled",
        f"in flight {f['stall_in_flight_first']:,.0f} at first, {f['stall_in_flight_last']:,.0f} "
        "at last; "
        f"for the learner waited {f['stall_queue_trajectories_max']:,.0f}",
    )
    for process in ("controller", "learner", "actors"):
        median, worst = (1e3 * f[f"loop_lag_{process}_{which}"] for which in ("median", "max"))
        shown.add_row(
            f"loop lag, {process}",
            f"worst of a second: median {median:,.0f} ms, at most {worst:,.0f} ms",
        )
    shown.add_row(
        "episodes dropped, frames dropped",
        f"{f['episodes_dropped']:,.0f}, {f['frames_dropped']:,.0f}",
    )
    return shown
