"""A TCP proxy, in a thread of its own, whose connections can be cut in every way a network has."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Cut = Literal["both ends", "one end", "silence", "delay"]
CUTS: tuple[Cut, ...] = ("both ends", "one end", "silence", "delay")
"""Ways to cut a connection, in this order:

both ends see a reset; the client alone does; nobody does, and nothing arrives; everything arrives
late.
"""

CHUNK_BYTES = 1 << 16


@dataclass(eq=False)
class Pair:
    """The two connections that carry one of a client's."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    tasks: list[asyncio.Task] = field(default_factory=list)


class Proxy:
    """Listens on some ports of `here`, and carries each connection to the same port of `there`."""

    def __init__(self, here: str, there: str, ports: Sequence[int]) -> None:
        self._here = here
        self._there = there
        self._ports = ports
        self._pairs: list[Pair] = []
        self._abandoned: list[
            asyncio.StreamWriter
        ] = []  # connections whose other end is gone, kept open
        self._silent: set[Pair] = set()
        self._delay_seconds = 0.0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="proxy").start()
        self._call(self._listen())

    def cut(self, how: Cut, delay_seconds: float = 2.0) -> int:
        """Cut all connections that are open now; returns how many. A delay lasts until `mend`."""
        return self._call(self._cut(how, delay_seconds))

    def mend(self) -> None:
        """End delays, and the connections that nothing arrives over."""
        self._call(self._mend())

    def close(self) -> None:
        """End all connections, and listen no more."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _listen(self) -> None:
        self._servers = [
            await asyncio.start_server(self._accept(port), self._here, port) for port in self._ports
        ]

    def _accept(
        self, port: int
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                up_reader, up_writer = await asyncio.open_connection(self._there, port)
            except OSError:
                writer.transport.abort()
                return
            pair = Pair(writer, up_writer)
            self._pairs.append(pair)
            pair.tasks.append(asyncio.create_task(self._pump(pair, reader, up_writer)))
            pair.tasks.append(asyncio.create_task(self._pump(pair, up_reader, writer)))

        return carry

    async def _pump(
        self, pair: Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = await reader.read(CHUNK_BYTES)
                if not data:
                    break
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                if pair in self._silent:
                    continue
                writer.write(data)
                await writer.drain()
        if pair not in self._silent:
            writer.close()

    async def _cut(self, how: Cut, delay_seconds: float) -> int:
        pairs = [
            pair
            for pair in self._pairs
            if not pair.client.is_closing() and not pair.server.is_closing()
        ]
        self._pairs = pairs
        if how == "delay":
            self._delay_seconds = delay_seconds
            return len(pairs)
        if how == "silence":
            self._silent.update(pairs)
            return len(pairs)
        for pair in pairs:
            for task in pair.tasks:
                task.cancel()
            pair.client.transport.abort()
            if how == "both ends":
                pair.server.transport.abort()
            else:
                self._abandoned.append(pair.server)
        self._pairs = []
        return len(pairs)

    async def _mend(self) -> None:
        self._delay_seconds = 0.0
        silent = self._silent
        self._silent = set()
        for pair in silent:
            pair.client.transport.abort()
            pair.server.transport.abort()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        await self._mend()
        await self._cut("both ends", 0.0)
        for writer in self._abandoned:
            writer.transport.abort()
