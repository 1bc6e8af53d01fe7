"""Cores and memory that this machine gives a process.

A container, a batch system or taskset may allow fewer than there are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")


def available_cores() -> int:
    """Count the cores that this process may keep busy.

    These are the cores of its affinity, or the quota of its control group if that is less.
    """
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(allowed, quota_cores())))


def quota_cores(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float:
    """Return the cores that this process's control groups allow; infinite without a limit."""
    quota = math.inf
    for group in _groups("cpu", root, membership):
        unified = _read_words(group / "cpu.max")
        if len(unified) == 2 and unified[0].isdigit():
            quota = min(quota, int(unified[0]) / int(unified[1]))
        limit = _read_number(group / "cpu.cfs_quota_us")
        period = _read_number(group / "cpu.cfs_period_us")
        if limit < math.inf and 0 < period < math.inf:
            quota = min(quota, limit / period)
    return quota


def available_bytes(
    meminfo: Path = MEMORY, root: Path = CGROUPS, membership: Path = MEMBERSHIP
) -> float:
    """Return the bytes that can be had without swapping, within the limits of control groups.

    They are infinite where the system does not say.
    """
    available = math.inf
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024.0
    for group in _groups("memory", root, membership):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit_bytes = _read_number(group / limit)
            used_bytes = _read_number(group / used)
            if limit_bytes < math.inf and used_bytes < math.inf:
                room_bytes = limit_bytes - used_bytes + _reclaimable_bytes(group)
                available = min(available, max(0.0, room_bytes))
    return available


def _reclaimable_bytes(group: Path) -> float:
    """Bytes of files that the group has in memory, which give way to what it asks for."""
    for line in _read_lines(group / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdigit():
            return float(value)
    return 0.0


def _groups(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """List the directories of this process's control group and of those around it.

    Both versions of control groups, 1 and 2, are looked at.
    """
    for line in _read_lines(membership):
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if names and controller not in names.split(","):
            continue
        top = root
        if names:  # version 1
            top = root / controller
        directory = top / path.lstrip("/")
        while top in (directory, *directory.parents):
            yield directory
            directory = directory.parent


def _read_lines(file: Path) -> list[str]:
    """Read the lines of a file of the kernel; none where it cannot be read."""
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _read_words(file: Path) -> list[str]:
    """Read the words of a file of the kernel; none where it cannot be read."""
    return " ".join(_read_lines(file)).split()


def _read_number(file: Path) -> float:
    """Read the number in a file of the kernel.

    It is infinite for "max", for -1 and where there is no such file.
    """
    words = _read_words(file)
    if not words or not words[0].isdigit():
        return math.inf
    return float(words[0])


def computes_on_gpus(devices: Path = Path("/dev")) -> bool:
    """Tell if this machine has NVIDIA's GPUs, and the installed torch is not the one for CPUs."""
    if not any(devices.glob("nvidia[0-9]*")):
        return False
    try:
        return "cpu" not in metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False
