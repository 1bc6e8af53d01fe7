"""Episodes that a fork server knows to have ended with their actor's process.

Code of an environment may end it, by a segmentation fault or `os._exit`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import uuid
from collections.abc import Iterator

import msgspec

from actors.pulse import Pulse
from protocol.messages import DropReason, Lease, Trajectory
from protocol.router import make_secret_name

_BYTES = 1 << 16
_LENGTH_BYTES = 4


class RunningLeases:
    """Leases whose environment's code runs now.

    They are in memory that a process shares with those it forks.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _BYTES)
        self._leases: list[Lease] = []

    @contextlib.contextmanager
    def track(self, lease: Lease) -> Iterator[None]:
        """Have the lease among them, while inside."""
        self._leases.append(lease)
        self._write()
        try:
            yield
        finally:
            self._leases.remove(lease)
            self._write()

    def read(self) -> list[Lease]:
        """Read the leases of the process that died."""
        length = int.from_bytes(self._memory[:_LENGTH_BYTES], "little")
        if not length:
            return []
        data = self._memory[_LENGTH_BYTES : _LENGTH_BYTES + length]
        return msgspec.msgpack.decode(data, type=list[Lease])

    def clear(self) -> None:
        """Forget them, before another process has the memory."""
        self._leases = []
        self._write()

    def _write(self) -> None:
        """Write the leases; their length goes last, and is 0 while they are half written."""
        data = msgspec.msgpack.encode(self._leases)
        if len(data) > _BYTES - _LENGTH_BYTES:
            return
        self._memory[:_LENGTH_BYTES] = bytes(_LENGTH_BYTES)
        self._memory[_LENGTH_BYTES : _LENGTH_BYTES + len(data)] = data
        self._memory[:_LENGTH_BYTES] = len(data).to_bytes(_LENGTH_BYTES, "little")


class ActorSlot:
    """A place in a fleet, which actors fill one after another.

    `reports` are notices of episodes whose environment ended the process of the actor before. The
    next actor then has its name, under which the controller believes that they are over.
    """

    def __init__(self) -> None:
        self.name = make_name()
        self.running = RunningLeases()
        self.pulse = Pulse()
        self.reports: list[Trajectory] = []

    def vacate(self, how: str = "") -> None:
        """Note that the actor's process has ended.

        `how` (the verb and what follows) is given if code of an environment may have done that.
        """
        leases = []
        if how:
            leases = self.running.read()
        self.running.clear()
        self.reports = [report_crash(lease, how) for lease in leases]
        if not leases:
            self.name = make_name()


def make_name() -> bytes:
    """Make a name for an actor that no other one has."""
    return make_secret_name(f"actor-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}")


def report_crash(lease: Lease, how: str) -> Trajectory:
    """Make the notice that an episode's environment ended its process."""
    detail = f"the environment's code ran when its process {how}; actors.log may say where"
    return Trajectory(
        key=lease.key,
        lease_attempt=lease.lease_attempt,
        task_index=lease.task_index,
        task_type="",
        task="",
        success=False,
        turns=[],
        drop_reason=DropReason.ENV_ERROR,
        detail=detail,
    )
