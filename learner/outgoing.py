"""Which weights go out, and when: copied between two updates, written (or sent) and announced
beside the next one."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from learner.publish import Snapshot, Weights, WeightWriter, description
from protocol.messages import WeightsPublished


class WeightPublisher:
    """The weights that the controller is told of, `lag` updates late.

    `copy` takes a snapshot of the weights of now, `tell` sends a message to the controller, `used`
    gets a snapshot back when it has been written. What fails while it writes fails `tasks`. With
    `send`, weights are not written: it is given them by name, and returns when all engines have
    received them.
    """

    def __init__(
        self,
        publisher: WeightWriter,
        tasks: asyncio.TaskGroup,
        copy: Callable[[], Awaitable[Snapshot]],
        tell: Callable[[WeightsPublished], Awaitable[None]],
        used: Callable[[Snapshot], None],
        lag: int = 0,
        send: Callable[[dict[str, Tensor]], None] | None = None,
    ) -> None:
        self._publisher = publisher
        self._tasks = tasks
        self._copy = copy
        self._tell = tell
        self._used = used
        self._lag = lag
        self._send = send
        self._copied: int | None = None  # version of the newest copy
        self._withheld: deque[tuple[Snapshot, list[int]]] = (
            deque()
        )  # what is kept back, and the groups it was trained on
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self.written: Weights | None = None
        """The newest ones that engines can load, or have received."""

    async def publish(self, version: int, groups: list[int], *, last: bool = False) -> None:
        """The weights are now of `version`, for which `groups` were consumed.

        `last`: no training follows, and nothing is kept back.
        """
        await self.announced()  # one copy of the weights at most waits to be written
        if self._copied != version:
            self._copied = version
            self._withheld.append((await self._copy(), groups))
        lag = 0 if last or self.written is None else self._lag
        if len(self._withheld) > lag:
            due = [self._withheld.popleft() for _ in range(len(self._withheld) - lag)]
            trained = [group for _, some in due for group in some]
            self._writing = self._tasks.create_task(
                (self._broadcast if self._send else self._write)(due[-1][0], trained, last)
            )
        elif last:
            await self._announce(self.written, [], last)

    async def announced(self) -> None:
        """Until the controller has been told of all that is due."""
        if self._writing is not None:
            await self._writing

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    async def _write(self, snapshot: Snapshot, groups: list[int], last: bool) -> None:
        self.written = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._publisher.write, snapshot
        )
        self._used(snapshot)
        await self._announce(self.written, groups, last)

    async def _broadcast(self, snapshot: Snapshot, groups: list[int], last: bool) -> None:
        """Announced first: sending takes until the engines have received all, which they begin when
        the controller tells them to."""
        size = sum(tensor.nbytes for tensor in snapshot.tensors.values())
        weights = Weights(snapshot.version, None, "", size, 0.0, description(snapshot))
        await self._announce(weights, groups, last)
        started = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._send, snapshot.tensors)
        self.written = weights._replace(seconds=time.monotonic() - started)
        self._used(snapshot)

    async def _announce(self, weights: Weights, groups: list[int], last: bool) -> None:
        await self._tell(
            WeightsPublished(
                version=weights.version,
                checksum=weights.checksum,
                trained=groups,
                last=last,
                transfer=weights.transfer,
            )
        )
