"""Which weights go out, and when: copied between two updates, written and announced beside the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from learner.publish import Publisher, Snapshot, Weights
from protocol.messages import Published


class Outgoing:
    """The weights that the controller is told of, `lag` updates late.

    `copy` takes a snapshot of the weights of now, `tell` sends a message to the controller, `used` gets a snapshot back when it has been
    written. What fails while it writes fails `tasks`.
    """

    def __init__(
        self,
        publisher: Publisher,
        tasks: asyncio.TaskGroup,
        copy: Callable[[], Awaitable[Snapshot]],
        tell: Callable[[Published], Awaitable[None]],
        used: Callable[[Snapshot], None],
        lag: int = 0,
    ) -> None:
        self._publisher = publisher
        self._tasks = tasks
        self._copy = copy
        self._tell = tell
        self._used = used
        self._lag = lag
        self._copied: int | None = None  # version of the newest copy
        self._withheld: deque[tuple[Snapshot, list[int]]] = deque()  # what is kept back, and the groups it was trained on
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self.written: Weights | None = None
        """The newest ones that engines can load."""

    async def publish(self, version: int, groups: list[int], *, last: bool = False) -> None:
        """The weights are now of `version`, for which `groups` were consumed. `last`: no training follows, and nothing is kept back."""
        await self.announced()  # one copy of the weights at most waits to be written
        if self._copied != version:
            self._copied = version
            self._withheld.append((await self._copy(), groups))
        lag = 0 if last or self.written is None else self._lag
        if len(self._withheld) > lag:
            due = [self._withheld.popleft() for _ in range(len(self._withheld) - lag)]
            trained = [group for _, some in due for group in some]
            self._writing = self._tasks.create_task(self._write(due[-1][0], trained, last))
        elif last:
            await self._announce([], last)

    async def announced(self) -> None:
        """Until the controller has been told of all that is due."""
        if self._writing is not None:
            await self._writing

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    async def _write(self, snapshot: Snapshot, groups: list[int], last: bool) -> None:
        self.written = await asyncio.get_running_loop().run_in_executor(self._thread, self._publisher.write, snapshot)
        self._used(snapshot)
        await self._announce(groups, last)

    async def _announce(self, groups: list[int], last: bool) -> None:
        weights = self.written
        await self._tell(Published(version=weights.version, path=str(weights.path), checksum=weights.checksum, trained=groups, last=last))
