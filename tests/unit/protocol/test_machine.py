"""What the machine, and the control group of a container, give a process."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from protocol.machine import (
    available_bytes,
    available_cores,
    quota_cores,
)

MIB = 2**20


def kernel_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/pod/c\n", {"pod/c/cpu.max": "max 100000\n", "pod/cpu.max": "150000 100000\n"}),
        (
            "4:cpu,cpuacct:/c\n",
            {"cpu/c/cpu.cfs_quota_us": "150000\n", "cpu/c/cpu.cfs_period_us": "100000\n"},
        ),
        (
            "4:cpu,cpuacct:/gone\n",
            {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        ),
    ],
    ids=["version 2, the parent's limit", "version 1", "version 1, seen from inside"],
)
def test_a_quota_of_a_control_group_is_found(
    tmp_path: Path, membership: str, files: dict[str, str]
) -> None:
    kernel_files(tmp_path, files | {"self": membership})
    assert quota_cores(tmp_path, tmp_path / "self") == 1.5


def test_without_a_limit_there_is_no_quota(tmp_path: Path) -> None:
    kernel_files(
        tmp_path,
        {"self": "0::/c\n4:cpu:/c\n", "c/cpu.max": "max 100000", "cpu/c/cpu.cfs_quota_us": "-1"},
    )
    assert (
        quota_cores(tmp_path, tmp_path / "self")
        == math.inf
        == quota_cores(tmp_path, tmp_path / "absent")
    )


def test_cores_are_those_of_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    assert available_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")  # as on other systems than Linux
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("membership", "files", "megabytes"),
    [
        ("0::/c\n", {"c/memory.max": str(200 * MIB), "c/memory.current": str(150 * MIB)}, 50),
        ("0::/c\n", {"c/memory.max": "max\n", "c/memory.current": str(150 * MIB)}, 1024),
        (
            "9:memory:/c\n",
            {
                "memory/c/memory.limit_in_bytes": str(200 * MIB),
                "memory/c/memory.usage_in_bytes": str(150 * MIB),
                "memory/c/memory.stat": f"cache 1\ntotal_inactive_file {20 * MIB}\n",
            },
            70,
        ),
        ("", {}, 1024),
    ],
    ids=["version 2", "no limit", "version 1, with what can be reclaimed", "no control groups"],
)
def test_memory_is_what_the_system_and_the_container_leave(
    tmp_path: Path, membership: str, files: dict[str, str], megabytes: int
) -> None:
    kernel_files(
        tmp_path,
        files
        | {"self": membership, "meminfo": "MemTotal: 8000000 kB\nMemAvailable:   1048576 kB\n"},
    )
    assert available_bytes(tmp_path / "meminfo", tmp_path, tmp_path / "self") == megabytes * MIB
    assert available_bytes(tmp_path / "absent", tmp_path, tmp_path / "nobody") == math.inf
