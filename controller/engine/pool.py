"""The engines of a controller: a turn goes to the one with the fewest turns, new weights to all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from controller.engine.client import EngineClient
from controller.engine.weights import apply_weights


class EnginePool:
    """All engines run the same weights. Safe to use from any number of tasks of one event loop."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._turns = {EngineClient(url): 0 for url in urls}

    def __iter__(self) -> Iterator[EngineClient]:
        return iter(self._turns)

    def turns(self) -> dict[str, int]:
        """Address of each engine -> the turns it has."""
        return {engine.url: count for engine, count in self._turns.items()}

    @contextlib.contextmanager
    def lend(self, but: EngineClient | None = None) -> Iterator[EngineClient]:
        """The engine with the fewest turns, for one turn; another one than `but`, if there is another one."""
        others = [engine for engine in self._turns if engine is not but]
        engine = min(others or self._turns, key=self._turns.__getitem__)
        self._turns[engine] += 1
        try:
            yield engine
        finally:
            self._turns[engine] -= 1

    async def apply_weights(self, path: str, version: int, checksum: str, *, deadline: float, verify: bool = False) -> float:
        """As `weights.apply_weights`, for all engines at once; the longest time that one of them stood still."""
        tasks = [asyncio.ensure_future(apply_weights(engine, path, version, checksum, deadline=deadline, verify=verify)) for engine in self]
        try:
            return max(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # each resumes its engine, whatever became of the others
                task.cancel()
            await asyncio.wait(tasks)

    async def close(self) -> None:
        for engine in self:
            await engine.close()
