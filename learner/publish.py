"""Weights out: copied between two updates, written (or sent) and announced beside the next one.

A version is one safetensors file, which engines load while they run; or it is sent over NCCL.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from learner.model.sharding import full_state_dict
from protocol.files import atomic_replace
from protocol.messages import Message, Transfer, WeightsApplied, WeightsPublished, weights_file

KEPT = 2
"""How many of the newest versions stay on disk, whatever engines run."""

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "auto": torch.float32}


class Snapshot(NamedTuple):
    """Weights of one version: name -> tensor in the engine's precision.

    They are on the CPU, or (engine.weights nccl) on the learner's GPU.
    """

    version: int
    tensors: dict[str, Tensor]


class Weights(NamedTuple):
    """A file of weights, or those that were sent over NCCL."""

    version: int
    path: Path | None
    checksum: str  # SHA-256 of the file's bytes, in hexadecimal
    size: int  # bytes
    seconds: float  # to write it, or until all engines had received it
    transfer: Transfer | None = None  # what was sent; there is no file then


class SnapshotSource(Protocol):
    """The training, which has the weights."""

    async def take_snapshot(self) -> Snapshot:
        """Copy the weights of now."""
        ...

    def recycle(self, snapshot: Snapshot, weights: Weights) -> None:
        """Take a snapshot back that has been written, or sent, as `weights`."""


class WeightSender(Protocol):
    """Sends weights over NCCL (engine/nccl_sender.py)."""

    def send(self, tensors: dict[str, Tensor]) -> None:
        """Return when all engines have received them."""


class MessageSender(Protocol):
    """Sends messages to the controller."""

    async def send(self, message: Message) -> None: ...


class WeightWriter:
    """Writes weights to `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = Path(directory)
        self.applied_version = -1
        """Newest version that all engines run.

        Later ones stay on disk, where engines load them one after another, however many updates the
        learner is ahead (it has no more batches than slots).
        """

    def write(self, snapshot: Snapshot) -> Weights:
        """Write `v<version>.safetensors`, which appears complete, under its final name.

        Tensors have the names of the Hugging Face checkpoint. It may be called in another thread
        than `copy_weights`.
        """
        started = time.monotonic()
        self._directory.mkdir(parents=True, exist_ok=True)
        path = weights_file(self._directory, snapshot.version)
        unfinished = self._directory / f".v{snapshot.version}-{os.getpid()}"
        with atomic_replace(path, unfinished, "run.weights_dir"):
            save_file(snapshot.tensors, unfinished)
            checksum = sha256_of(unfinished)
            os.replace(unfinished, path)
        self._remove_old()
        seconds = time.monotonic() - started
        return Weights(snapshot.version, path, checksum, path.stat().st_size, seconds)

    def _remove_old(self) -> None:
        files = sorted(self._directory.glob("v*.safetensors"), key=_version_of)
        for path in files[:-KEPT]:
            if _version_of(path) < self.applied_version:
                path.unlink(missing_ok=True)


class WeightPublisher:
    """Publishes the weights of a source: the controller is told of them `lag` updates late.

    What fails while it writes or sends fails `tasks`.
    """

    def __init__(
        self,
        source: SnapshotSource,
        writer: WeightWriter,
        controller: MessageSender,
        tasks: asyncio.TaskGroup,
        lag: int = 0,
        sender: WeightSender | None = None,
    ) -> None:
        """With a `sender`, weights are sent and not written."""
        self._source = source
        self._writer = writer
        self._controller = controller
        self._tasks = tasks
        self._lag = lag
        self._sender = sender
        self._copied_version: int | None = None
        # what is kept back, and the groups that it was trained on
        self._withheld: deque[tuple[Snapshot, list[int]]] = deque()
        self._delivery: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self.newest: Weights | None = None
        """The newest weights that engines can load, or have received."""

    async def publish(self, version: int, groups: list[int], *, last: bool = False) -> None:
        """Publish weights of `version`, for which `groups` were consumed.

        `last`: no training follows, and nothing is kept back.
        """
        await self.wait_announced()  # one copy of the weights at most waits to be written
        if self._copied_version != version:
            self._copied_version = version
            self._withheld.append((await self._source.take_snapshot(), groups))
        due = self._pop_due(everything=last or self.newest is None)
        if due:
            snapshot, _ = due[-1]
            trained = [group for _, groups_of_one in due for group in groups_of_one]
            delivery = self._deliver(snapshot, trained, last)
            self._delivery = self._tasks.create_task(delivery)
        elif last and self.newest is not None:
            await self.announce(self.newest, [], last)

    async def wait_announced(self) -> None:
        """Wait until the controller has been told of all that is due."""
        if self._delivery is not None:
            await self._delivery

    async def announce(self, weights: Weights, groups: list[int], last: bool) -> None:
        """Tell the controller of weights, and of the groups that they were trained on."""
        await self._controller.send(
            WeightsPublished(
                version=weights.version,
                checksum=weights.checksum,
                trained=groups,
                last=last,
                transfer=weights.transfer,
            )
        )

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def _pop_due(self, everything: bool) -> list[tuple[Snapshot, list[int]]]:
        """Take what is kept back no longer: all but the newest `lag`."""
        kept = self._lag
        if everything:
            kept = 0
        return [self._withheld.popleft() for _ in range(len(self._withheld) - kept)]

    async def _deliver(self, snapshot: Snapshot, groups: list[int], last: bool) -> None:
        if self._sender is None:
            await self._write(snapshot, groups, last)
        else:
            await self._send(self._sender, snapshot, groups, last)

    async def _write(self, snapshot: Snapshot, groups: list[int], last: bool) -> None:
        loop = asyncio.get_running_loop()
        weights = await loop.run_in_executor(self._thread, self._writer.write, snapshot)
        self._finish_delivery(snapshot, weights)
        await self.announce(weights, groups, last)

    async def _send(
        self, sender: WeightSender, snapshot: Snapshot, groups: list[int], last: bool
    ) -> None:
        """Announce first: sending takes until the engines have received all.

        They begin to when the controller tells them to.
        """
        size_bytes = sum(tensor.nbytes for tensor in snapshot.tensors.values())
        transfer = describe_transfer(snapshot)
        weights = Weights(snapshot.version, None, "", size_bytes, 0.0, transfer)
        await self.announce(weights, groups, last)
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, sender.send, snapshot.tensors)
        self._finish_delivery(snapshot, weights._replace(seconds=time.monotonic() - started))

    def _finish_delivery(self, snapshot: Snapshot, weights: Weights) -> None:
        self.newest = weights
        self._source.recycle(snapshot, weights)


class AppliedWeights:
    """The versions that all engines run, as the controller tells."""

    def __init__(self) -> None:
        self._by_version: dict[int, asyncio.Future[WeightsApplied]] = {}

    def expect(self, version: int) -> None:
        """Expect the controller's word on a version that is published."""
        if version not in self._by_version:
            self.expect_again(version)

    def expect_again(self, version: int) -> None:
        """Expect another word on a version, whatever came before."""
        self._by_version[version] = asyncio.get_running_loop().create_future()

    def note(self, applied: WeightsApplied) -> None:
        """Take the controller's word."""
        expected = self._by_version[applied.version]
        if not expected.done():
            expected.set_result(applied)

    async def wait(self, version: int) -> None:
        """Wait for the controller's word on a version."""
        await self._by_version[version]


def copy_weights(
    model: PreTrainedModel,
    version: int,
    dtype: str,
    into: Snapshot | None = None,
    device: torch.device | str = "cpu",
    *,
    keep: bool = True,
) -> Snapshot:
    """Copy the weights to `device`, where training does not change them any more.

    They have the engine's precision (`engine.dtype`; auto: float32, for the engine to cast), into
    which the device casts that has them: half the bytes travel, and no core of the host is busy.
    `into`: an earlier one whose memory may be used again, which is several times faster than fresh
    memory. With several ranks, all must ask; those that do not `keep` get no tensors.
    """
    tensors = {}
    devices = {torch.device(device)}
    for name, tensor in full_state_dict(model, _DTYPES[dtype]):
        devices.add(tensor.device)
        if not keep:
            continue
        if into is not None:
            memory = into.tensors[name]
        else:
            memory = _allocate(tensor, _DTYPES[dtype], torch.device(device))
        tensors[name] = memory.copy_(tensor.to(memory.dtype), non_blocking=True)
    for each in devices:
        if each.type == "cuda":
            # copies from and to a GPU have only been asked for, and another thread reads them
            torch.cuda.synchronize(each)
    return Snapshot(version, tensors)


def _allocate(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate memory for a copy; on the host, what a GPU writes to beside everything else."""
    pinned = tensor.is_cuda and device.type == "cpu"
    return torch.empty(tensor.shape, dtype=dtype, device=device, pin_memory=pinned)


def describe_transfer(snapshot: Snapshot) -> Transfer:
    """Describe the tensors as they will be sent: names, dtypes and shapes in their order."""
    tensors = snapshot.tensors.values()
    dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors]
    return Transfer(list(snapshot.tensors), dtypes, [list(tensor.shape) for tensor in tensors])


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version_of(path: Path) -> int:
    return int(path.stem.removeprefix("v"))
