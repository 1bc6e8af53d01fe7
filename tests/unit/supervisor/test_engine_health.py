"""Engines that live and can do nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

import supervisor.engine_health
from protocol.lifetime import dying_with_parent
from supervisor.endpoints import free_port
from supervisor.engine_health import FAILED_CHECKS, EngineHealth, check_health, kill_dead_engines
from supervisor.process import ChildProcess
from tests.fixtures.servers import serve_app


@pytest.mark.parametrize(
    ("looks", "ended_at"),
    [
        ([False] * 10, None),  # it is being started
        ([True, False, False, False], 3),
        ([True, False, False, True, False, False], None),
        ([True, False, False, None, False, False], None),
        ([True, None, None, None, None], None),  # it is stopped: it may go on
    ],
)
def test_an_engine_is_lame_when_it_could_work_and_cannot_several_times_in_a_row(
    looks: list[bool | None], ended_at: int | None
):
    health = EngineHealth()
    dead_at = None
    for number, healthy in enumerate(looks):
        health.record(healthy)
        if health.is_dead:
            dead_at = number
            break
    assert dead_at == ended_at


@contextlib.asynccontextmanager
async def answering(status: dict[str, int], answered: list[int] | None = None):
    """A server whose /health has `status["health"]`, which may change; its address.

    `answered`: what it has answered so far.
    """

    async def answer(request: web.Request) -> web.Response:
        if answered is not None:
            answered.append(status["health"])
        return web.Response(status=status["health"])

    app = web.Application()
    app.router.add_get("/health", answer)
    async with serve_app(app) as url:
        yield url


@pytest.mark.parametrize(("health", "able"), [(200, True), (503, False), (500, None)])
async def test_what_the_server_says_of_its_core_counts(health: int, able: bool | None):
    async with aiohttp.ClientSession() as session, answering({"health": health}) as url:
        assert await check_health(session, url) is able


async def test_a_server_that_takes_no_connections_can_do_nothing():
    async with aiohttp.ClientSession() as session:
        assert await check_health(session, f"http://127.0.0.1:{free_port()}") is False


async def test_a_server_that_is_silent_may_be_busy():
    listening = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with (
        listening,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.1)) as session,
    ):
        assert await check_health(session, f"http://127.0.0.1:{port}") is None


async def test_a_lame_engine_is_ended_and_the_one_after_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor.engine_health, "CHECK_EVERY_S", 0.01)

    def sleeper() -> ChildProcess:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        process = subprocess.Popen(command, start_new_session=True, preexec_fn=dying_with_parent())
        return ChildProcess("engine", process, tmp_path / "log")

    engines = {0: sleeper()}
    health = {"health": 200}
    answered = []

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)

    async with answering(health, answered) as url:
        watching = asyncio.create_task(kill_dead_engines(engines, [url]))
        await until(lambda: 200 in answered)
        health["health"] = 503
        await until(lambda: engines[0].process.poll() is not None)
        assert engines[0].process.returncode == -signal.SIGKILL
        engines[0] = following = sleeper()
        answered.clear()
        await until(lambda: len(answered) > 3 * FAILED_CHECKS)
        assert following.process.poll() is None, "it has not been able to do anything yet"
        watching.cancel()
        following.signal(signal.SIGKILL)
        following.process.wait()
