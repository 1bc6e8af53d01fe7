"""Updates of weights when the engine answers late, twice or not at all."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from engine.client import EngineClient, EngineError, EngineUnreachable
from engine.pool import EnginePool
from engine.weight_update import (
    scale_deadline,
    transfer_bytes,
    update_engine,
    update_engine_nccl,
)
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
        app.router.add_route("*", "/foray/{name}", self._answer)
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
            {
                "weight_version": self.version,
                "is_paused": self.paused,
                "world_size": self.workers,
                "identity": [1, 2, 3],
            }
        )


async def test_an_update_is_check_pause_start_update_finish_resume() -> None:
    stub = Stub()
    async with stub as client:
        seconds = await update_engine(client, "file", 3, "sum", deadline=5.0)
    assert seconds > 0
    assert stub.calls == [
        "weight_info",
        "check_weights",
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


@pytest.mark.slow
@pytest.mark.parametrize("way", ["hang", "refuse"])
async def test_an_engine_is_not_paused_for_a_file_that_is_not_checked(way: str) -> None:
    stub = Stub()
    getattr(stub, way).add("check_weights")
    async with stub as client:
        with pytest.raises(EngineError):
            await update_engine(client, "file", 3, "sum", deadline=0.5)
    assert "check_weights" in stub.calls and "pause" not in stub.calls


async def test_a_file_is_checked_once_on_each_machine() -> None:
    """A file is checked once on each machine: by one of the engines of a host name."""
    stubs = [Stub(), Stub(), Stub()]
    async with stubs[0] as one, stubs[1] as other, stubs[2] as elsewhere:
        urls = [one.url, other.url, elsewhere.url.replace("127.0.0.1", "localhost")]
        pool = EnginePool(urls)
        await pool.apply_weights("file", 3, "sum", deadline=20.0)
        await pool.close()
    asked = [stub.calls.count("check_weights") for stub in stubs]
    assert (sum(asked[:2]), asked[2]) == (1, 1)
    assert [stub.version for stub in stubs] == ["3", "3", "3"]


async def test_an_engine_that_does_not_answer_leaves_the_check_to_the_others() -> None:
    stubs = [Stub(), Stub()]
    for stub in stubs:
        stub.lose = {"check_weights"}
    async with stubs[0] as one, stubs[1] as other:
        pool = EnginePool([one.url, other.url])
        await pool.apply_weights("file", 3, "sum", deadline=20.0)
        await pool.close()
    assert [stub.version for stub in stubs] == ["3", "3"]


def test_scale_deadline_adds_the_time_to_read_the_weights() -> None:
    assert scale_deadline(60.0, 0) == 60.0
    assert scale_deadline(60.0, 16 * 10**9) == 140.0


def test_transfer_bytes_are_those_of_its_tensors() -> None:
    transfer = Transfer(["a", "b", "c"], ["float32", "bfloat16", "float32"], [[2, 3], [5], []])
    assert transfer_bytes(transfer) == 24 + 10 + 4


@pytest.mark.parametrize(
    "lost",
    ["check_weights", "pause", "start_weight_update", "update_weights", "resume", "weight_info"],
)
async def test_an_update_is_tried_again_after_a_lost_connection(lost: str) -> None:
    stub = Stub()
    stub.lose = {lost}
    async with stub as client:
        await update_engine(client, "file", 3, "sum", deadline=5.0)
    assert stub.version == "3"
    assert not stub.paused


@pytest.mark.slow
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


@pytest.mark.slow
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
