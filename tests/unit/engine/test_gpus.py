"""GPUs of this machine, as its library tells of them in the tests' place."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from engine.gpus import Gpu, list_gpus, visible_names

GIB = 2**30


class LibraryMissing(Exception):
    """The library's error for a machine without a driver."""


def library(gpus: dict[str, tuple[int, int]]) -> ModuleType:
    """NVIDIA's bindings for a machine whose GPUs have (memory, of which used), by UUID."""
    by_index = list(gpus.values())
    module = ModuleType("pynvml")
    functions = {
        "NVMLError": LibraryMissing,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(gpus),
        "nvmlDeviceGetHandleByIndex": by_index.__getitem__,
        "nvmlDeviceGetHandleByUUID": gpus.__getitem__,
        "nvmlDeviceGetMemoryInfo": lambda has: SimpleNamespace(total=has[0], used=has[1]),
        "nvmlDeviceGetName": lambda has: f"GPU of {has[0] // GIB}",
    }
    vars(module).update(functions)
    return module


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two GPUs, all of which are shown."""
    gpus = {"GPU-a": (80 * GIB, GIB), "GPU-b": (40 * GIB, 0)}
    monkeypatch.setitem(sys.modules, "pynvml", library(gpus))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def test_list_gpus_without_a_choice_lists_all(machine: pytest.MonkeyPatch) -> None:
    """Memory and what others have of it are told."""
    assert list_gpus() == [Gpu("GPU of 80", 80 * GIB, GIB), Gpu("GPU of 40", 40 * GIB)]


@pytest.mark.parametrize(
    ("shown", "sizes"), [("1", [40]), ("1,0", [40, 80]), ("GPU-b", [40]), ("", []), ("1,7,0", [40])]
)
def test_list_gpus_visible_devices_choose_and_order(
    machine: pytest.MonkeyPatch, shown: str, sizes: list[int]
) -> None:
    """CUDA_VISIBLE_DEVICES has numbers or UUIDs; the first that is none ends the list."""
    machine.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert [gpu.memory_bytes // GIB for gpu in list_gpus()] == sizes


def test_list_gpus_machine_without_driver_has_none(machine: pytest.MonkeyPatch) -> None:
    """That is no error: a run may compute on CPUs."""

    def fail() -> None:
        raise LibraryMissing("no driver")

    machine.setattr(sys.modules["pynvml"], "nvmlInit", fail)
    assert list_gpus() == []


def test_visible_names_without_a_choice_are_all_numbers() -> None:
    """As many as the machine has."""
    assert visible_names(3, None) == ["0", "1", "2"]
