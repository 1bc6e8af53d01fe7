"""Find engines that live and can do nothing.

vLLM's server may outlive its core, and then it neither works nor ends.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping, Sequence

import aiohttp

from supervisor.process import ChildProcess

CHECK_EVERY_S = 2.0
ANSWER_TIMEOUT_S = 5.0

FAILED_CHECKS = 3
"""Failed checks in a row after which an engine is killed."""


class EngineHealth:
    """The recent health checks of one engine."""

    def __init__(self) -> None:
        self._was_healthy = False
        self._failed_in_a_row = 0

    def record(self, healthy: bool | None) -> None:
        """Take the outcome of a check; None where the engine did not say."""
        if healthy:
            self._was_healthy = True
        if healthy is False and self._was_healthy:
            self._failed_in_a_row += 1
        else:
            self._failed_in_a_row = 0

    @property
    def is_dead(self) -> bool:
        """The engine has worked once, and failed its last checks."""
        return self._failed_in_a_row >= FAILED_CHECKS


async def check_health(session: aiohttp.ClientSession, url: str) -> bool | None:
    """Ask the engine at `url` whether it can work.

    It cannot if its server says that the core is dead, or takes no connection. None if it is
    silent, since it may be busy, or stopped.
    """
    try:
        async with session.get(f"{url}/health") as response:
            return {200: True, 503: False}.get(response.status)
    except aiohttp.ClientConnectorError:
        return False
    except (aiohttp.ClientError, TimeoutError):
        return None


async def kill_dead_engines(engines: Mapping[int, ChildProcess], urls: Sequence[str]) -> None:
    """Kill engines that can do nothing any more, forever.

    `engines` may change; a new process begins with a clean record.
    """
    watched: dict[int, tuple[ChildProcess, EngineHealth]] = {}
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            for number, child in list(engines.items()):
                if number not in watched or watched[number][0] is not child:
                    watched[number] = (child, EngineHealth())
                health = watched[number][1]
                health.record(await check_health(session, urls[number]))
                if health.is_dead:
                    child.signal(signal.SIGKILL)
            await asyncio.sleep(CHECK_EVERY_S)
