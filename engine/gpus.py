"""The GPUs that this machine shows to a run's processes, by NVIDIA's management library.

CUDA_VISIBLE_DEVICES says which those are, and in which order they are counted.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any, NamedTuple

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Gpu(NamedTuple):
    """A GPU: what it has, and what other processes have of it."""

    name: str
    memory_bytes: int
    used_bytes: int = 0

    def describe(self) -> str:
        """Its name and its memory, in words."""
        return f"{self.name}, {self.memory_bytes / 2**30:.0f} GiB"


def list_gpus() -> list[Gpu]:
    """List the GPUs that are shown here, in their order; none without a driver or its library."""
    try:
        nvml = _load_nvml()
    except ModuleNotFoundError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        shown = visible_names(nvml.nvmlDeviceGetCount(), os.environ.get(VISIBLE))
        return [_read_gpu(nvml, name) for name in shown]
    finally:
        nvml.nvmlShutdown()


def visible_names(count: int, shown: str | None) -> list[str]:
    """List what a machine of `count` GPUs shows, as numbers or UUIDs.

    `shown` is CUDA_VISIBLE_DEVICES, if it is set. As with CUDA, the first name that is none ends
    the list.
    """
    if shown is None:
        return [str(number) for number in range(count)]
    names = []
    for entry in shown.split(","):
        name = entry.strip()
        if not name.startswith(("GPU-", "MIG-")) and not (name.isdecimal() and int(name) < count):
            break
        names.append(name)
    return names


def _load_nvml() -> ModuleType:
    """The bindings of the library: NVIDIA's own package, or the copy that vLLM has of it."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        from vllm.third_party import pynvml
    return pynvml


def _read_gpu(nvml: Any, name: str) -> Gpu:
    if name.isdecimal():
        handle = nvml.nvmlDeviceGetHandleByIndex(int(name))
    else:
        handle = nvml.nvmlDeviceGetHandleByUUID(name)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(str(nvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.used))
