"""Measure what new weights cost, from the learner's copy to the engine: a file of 4 GB.

`python -m benchmarks.publication [--gigabytes N] [--directory DIR] [--quick] [--json FILE]` (a
minute, twice the file's size of memory)

The stages are those of a run, by its own functions, without an engine:

    write and hash   the learner's writer, beside the next update (learner/publish.py)
    check            the hash on the engines' machine, while they generate (engine/client.py)
    read             every tensor, as an engine loads them: the engine stands still
    verify           every tensor compared with what was read: at the first update and every
                     `engine.verify_every`-th, standing still

`still_share` is the time of reading over that of reading and hashing: what is left of the time for
which engines stood still when they hashed the file themselves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table

from engine.plugin.file_check import check_file, check_identity
from engine.plugin.weight_file import tensors
from learner.publish import Snapshot, Weights, WeightWriter

Result = TypeVar("Result")

GIB = 2**30
TENSOR_BYTES = 64 << 20
"""Size of each tensor: a matrix of a model of some billion parameters."""

STILL = ("read", "verify")
"""Stages for which an engine stands still."""


def build_snapshot(size_bytes: int) -> Snapshot:
    """Make random bfloat16 tensors of so many bytes together."""
    count = max(1, size_bytes // TENSOR_BYTES)
    shape = (TENSOR_BYTES // 2 // 4096, 4096)
    random = torch.Generator().manual_seed(0)
    block = torch.randn(shape, generator=random).bfloat16()
    return Snapshot(1, {f"layer.{i}.weight": block + i for i in range(count)})


def measure(size_bytes: int, directory: Path) -> dict[str, float]:
    """Return the seconds of each stage."""
    written, shapes = _write(size_bytes, directory)
    path = written.path
    assert path is not None, "weights were not written to a file"
    identity, checking = _time(lambda: check_file(path, written.checksum))
    held = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}

    def read() -> None:
        check_identity(path, identity)
        for name, tensor in tensors(path):
            held[name].copy_(tensor)

    def verify() -> bool:
        return all(torch.equal(held[name], tensor) for name, tensor in tensors(path))

    _, reading = _time(read)
    equal, verifying = _time(verify)
    if not equal:
        raise RuntimeError(f"{path} does not hold what was written")
    return {
        "write and hash": written.seconds,
        "check": checking,
        "read": reading,
        "verify": verifying,
    }


def _write(size_bytes: int, directory: Path) -> tuple[Weights, dict[str, torch.Size]]:
    """Write random tensors; returns the file, and their shapes by name."""
    snapshot = build_snapshot(size_bytes)
    written = WeightWriter(directory).write(snapshot)
    return written, {name: tensor.shape for name, tensor in snapshot.tensors.items()}


def _time(call: Callable[[], Result]) -> tuple[Result, float]:
    started = time.monotonic()
    result = call()
    return result, time.monotonic() - started


def report(seconds: dict[str, float], size_bytes: int, console: Console) -> dict[str, float]:
    """Print the table; the figures under their names."""
    table = Table("", "seconds", "GB/s", "engines", title=f"{size_bytes / GIB:.2f} GiB of bfloat16")
    for stage, value in seconds.items():
        state = "stand still" if stage in STILL else "generate"
        table.add_row(stage, f"{value:.2f}", f"{size_bytes / 1e9 / value:.2f}", state)
    console.print(table)
    still_share = seconds["read"] / (seconds["read"] + seconds["check"])
    console.print(f"still_share {still_share:.3f}", highlight=False)
    return {**seconds, "bytes": size_bytes, "still_share": still_share}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.publication", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the file, in GiB")
    parser.add_argument("--directory", type=Path, help="where it is written (default: /dev/shm)")
    parser.add_argument("--quick", action="store_true", help="some seconds: a quarter of a GiB")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    size_bytes = int((0.25 if options.quick else options.gigabytes) * GIB)
    size_bytes -= size_bytes % TENSOR_BYTES
    parent = options.directory or Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        seconds = measure(size_bytes, Path(directory))
    results = report(seconds, size_bytes, Console())
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
