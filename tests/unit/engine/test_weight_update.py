"""Updates of weights when the engine answers late, twice or not at all."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from engine.client import EngineClient, EngineError, EngineUnreachable
from engine.pool import EnginePool
from engine.weight_update import update_engine, update_engine_nccl
from protocol.messages import Transfer
from supervisor.endpoints import free_port
from tests.fixtures.servers import serve_app


class Stub:
    """An engine of routes only, which counts calls.

    It loses the connection where it is told to, after doing what was asked.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.version = "default"
        self.paused = False
        self.workers = 1
        self.lose: set[str] = set()
        self.hang: set[str] = set()
        self.refuse: set[str] = set()

    async def __aenter__(self) -> EngineClient:
        app = web.Application()
        app.router.add_route("*", "/{name}", self._answer)
        self._server = serve_app(app, handler_cancellation=True)
        self._client = EngineClient(await self._server.__aenter__())
        return self._client

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()
        await self._server.__aexit__(*error)

    async def _answer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.calls.append(name)
        if name in ("pause", "resume"):
            self.paused = name == "pause"
        if name == "finish_weight_update":
            self.version = (await request.json())["weight_version"]
        if name in self.refuse:
            return web.json_response({"error": {"message": f"no {name} today"}}, status=500)
        if name in self.hang:
            await asyncio.sleep(60)
        if name in self.lose:
            self.lose.discard(name)
            request.transport.abort()
            return web.Response()
        return web.json_response(
            {"weight_version": self.version, "is_paused": self.paused, "world_size": self.workers}
        )


async def test_an_update_is_pause_start_update_finish_resume() -> None:
    stub = Stub()
    async with stub as client:
        seconds = await update_engine(client, "file", 3, "sum", deadline=5.0)
    assert seconds > 0
    assert stub.calls == [
        "weight_info",
        "pause",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
        "resume",
        "weight_info",
    ]


async def test_an_update_whose_answer_was_lost_is_not_done_twice() -> None:
    stub = Stub()
    stub.lose = {"finish_weight_update"}
    async with stub as client:
        assert await update_engine(client, "file", 3, "sum", deadline=5.0) == 0.0
    assert stub.calls.count("update_weights") == 1
    assert not stub.paused


@pytest.mark.parametrize(
    "lost", ["pause", "start_weight_update", "update_weights", "resume", "weight_info"]
)
async def test_an_update_is_tried_again_after_a_lost_connection(lost: str) -> None:
    stub = Stub()
    stub.lose = {lost}
    async with stub as client:
        await update_engine(client, "file", 3, "sum", deadline=5.0)
    assert stub.version == "3"
    assert not stub.paused


async def test_an_update_that_takes_too_long_names_the_setting_and_resumes() -> None:
    stub = Stub()
    stub.hang = {"update_weights"}
    async with stub as client:
        with pytest.raises(EngineError, match=r"version 3 .*engine\.update_seconds"):
            await update_engine(client, "file", 3, "sum", deadline=0.5)
    assert not stub.paused


SENT = Transfer(["w"], ["float32"], [[2, 3]])


async def test_weights_sent_once_are_not_asked_for_again_when_the_answer_is_lost() -> None:
    """Weights that are sent once are not asked for again when their answer is lost."""
    stub = Stub()
    stub.lose = {"update_weights"}
    async with stub as client:
        with pytest.raises(EngineError, match="sent once"):
            await update_engine_nccl(client, SENT, 3, deadline=5.0)
    assert stub.calls.count("update_weights") == 1


@pytest.mark.parametrize(
    "lost", ["pause", "start_weight_update", "finish_weight_update", "resume", "weight_info"]
)
async def test_what_stands_around_sent_weights_is_tried_again_after_a_lost_connection(
    lost: str,
) -> None:
    stub = Stub()
    stub.lose = {lost}
    async with stub as client:
        await update_engine_nccl(client, SENT, 3, deadline=5.0)
    assert (stub.version, stub.paused, stub.calls.count("update_weights")) == ("3", False, 1)


async def test_update_fails_at_once_when_one_engine_fails_while_weights_are_sent() -> None:
    """An update fails at once when one engine does; none generates with half of the weights."""
    failing = Stub()
    waiting = Stub()
    failing.refuse = {"update_weights"}
    waiting.hang = {"update_weights"}
    async with failing as one, waiting as other:
        pool = EnginePool([one.url, other.url])
        with pytest.raises(EngineError, match="no update_weights today"):
            await asyncio.wait_for(pool.receive_weights(SENT, 3, deadline=60.0), 10.0)
        await pool.close()
    assert failing.paused and "resume" not in failing.calls + waiting.calls


async def test_engines_that_do_not_meet_the_learner_in_time_name_the_place_and_the_setting() -> (
    None
):
    stub = Stub()
    stub.hang = {"init_weight_transfer_engine"}
    async with stub as client:
        pool = EnginePool([client.url])
        with pytest.raises(EngineError, match=r"tcp://127\.0\.0\.1:9 .*engine\.update_seconds"):
            await pool.init_nccl_group("tcp://127.0.0.1:9", deadline=0.5)
        await pool.close()


async def test_an_engine_of_several_workers_is_refused_before_any_waits_for_the_learner() -> None:
    single = Stub()
    double = Stub()
    double.workers = 2
    async with single as one, double as other:
        pool = EnginePool([one.url, other.url])
        with pytest.raises(EngineError, match=rf"engine\.weights: .*{other.url} has 2"):
            await pool.init_nccl_group("tcp://127.0.0.1:9", deadline=5.0)
        await pool.close()
    assert "init_weight_transfer_engine" not in single.calls + double.calls


async def test_an_engine_that_is_not_there_is_an_error_with_its_address() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    client = EngineClient(url)
    try:
        with pytest.raises(EngineUnreachable, match=url):
            await client.weight_version()
        assert not await client.health()
    finally:
        await client.close()
