"""What this machine gives a process: cores and memory, of which a container, a batch system or
taskset may allow fewer than there are."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")


def available_cores() -> int:
    """How many cores this process may keep busy: those of its affinity, or the quota of its control
    group if that is less."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(allowed, quota_cores())))


def quota_cores(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float:
    """Cores that the control groups of this process allow; infinite where they set no limit."""
    quota = math.inf
    for group in _groups("cpu", root, membership):
        unified = _words(group / "cpu.max")
        if len(unified) == 2 and unified[0].isdigit():
            quota = min(quota, int(unified[0]) / int(unified[1]))
        limit = _number(group / "cpu.cfs_quota_us")
        period = _number(group / "cpu.cfs_period_us")
        if limit < math.inf and 0 < period < math.inf:
            quota = min(quota, limit / period)
    return quota


def available_bytes(
    meminfo: Path = MEMORY, root: Path = CGROUPS, membership: Path = MEMBERSHIP
) -> float:
    """Memory that can be had without swapping, within the limits of control groups; infinite where
    the system does not say."""
    left = math.inf
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                left = int(line.split()[1]) * 1024.0
    for group in _groups("memory", root, membership):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most = _number(group / limit)
            taken = _number(group / used)
            if most < math.inf and taken < math.inf:
                left = min(left, max(0.0, most - taken + _reclaimable(group)))
    return left


def _reclaimable(group: Path) -> float:
    """Bytes of files that the group has in memory and that give way to what it asks for."""
    for line in _words(group / "memory.stat", lines=True):
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return float(value)
    return 0.0


def _groups(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """The directories of this process's control group and of those around it, of version 1 and
    2."""
    for line in _words(membership, lines=True):
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if names and controller not in names.split(","):
            continue
        top = root / controller if names else root
        place = top / path.lstrip("/")
        while top in (place, *place.parents):
            yield place
            place = place.parent


def _words(file: Path, lines: bool = False) -> list[str]:
    """The words, or the lines, of a file of the kernel; none where it cannot be read."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError):
        return []
    return text.splitlines() if lines else text.split()


def _number(file: Path) -> float:
    """The number in a file of the kernel; infinite for "max", -1 and where there is no such
    file."""
    words = _words(file)
    return float(words[0]) if words and words[0].isdigit() else math.inf
