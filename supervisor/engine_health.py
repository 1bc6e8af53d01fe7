"""Engines that live and can do nothing: vLLM's server may outlive its core, and then it neither
works nor ends."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping, Sequence

import aiohttp

from supervisor.process import ChildProcess

INTERVAL = 2.0
"""Seconds between two looks."""
ANSWERS_WITHIN = 5.0
LOOKS = 3
"""In a row at which it could do nothing, until it is ended."""


class EngineHealth:
    """Of one engine, look by look."""

    def __init__(self) -> None:
        self._was_able = False
        self._in_a_row = 0

    def saw(self, able: bool | None) -> bool:
        """Whether it is to be ended. `able`: None where that could not be found out."""
        self._was_able |= bool(able)
        self._in_a_row = self._in_a_row + 1 if able is False and self._was_able else 0
        return self._in_a_row >= LOOKS


async def look(session: aiohttp.ClientSession, url: str) -> bool | None:
    """Whether the engine at `url` can work.

    Not, if its server says that the core is dead, or takes no connection; None if it is silent,
    since it may be busy, or stopped.
    """
    try:
        async with session.get(f"{url}/health") as response:
            return {200: True, 503: False}.get(response.status)
    except aiohttp.ClientConnectorError:
        return False
    except (aiohttp.ClientError, TimeoutError):
        return None


async def kill_dead_engines(engines: Mapping[int, ChildProcess], urls: Sequence[str]) -> None:
    """Forever: kill those that can do nothing any more.

    `engines` may change; a new process begins anew.
    """
    known: dict[int, tuple[ChildProcess, EngineHealth]] = {}
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=ANSWERS_WITHIN)
    ) as session:
        while True:
            for number, child in list(engines.items()):
                if number not in known or known[number][0] is not child:
                    known[number] = child, EngineHealth()
                if known[number][1].saw(await look(session, urls[number])):
                    child.signal(signal.SIGKILL)
            await asyncio.sleep(INTERVAL)
