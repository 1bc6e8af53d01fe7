"""Turns whose engine is stuck, ends or is lost are sampled again, by another if there is one."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from controller.turns import MAX_RETRIES
from engine import connection
from engine.client import GENERATE
from engine.fake.server import FakeEngine
from engine.plugin import auth as gate
from engine.pool import EnginePool
from protocol.messages import (
    TurnFailed,
    TurnResult,
)
from supervisor.endpoints import free_port
from tests.fixtures.engines import KEY, VOCABULARY
from tests.fixtures.messages import make_turn_request
from tests.fixtures.proxy import open_proxy
from tests.fixtures.turns import (
    TurnBench,
    bind_bench,
    by_tap_and_stream,
    fake_bench,
    make_fake_engine,
    request_turn,
)


@pytest.mark.parametrize("evaluation", [False, True], ids=["training", "evaluation"])
async def test_a_turn_that_makes_no_progress_is_sampled_again(
    bench: TurnBench, evaluation: bool
) -> None:
    runner = bench.runner(progress_timeout_s=2.0)
    await bench.client.pause()
    turn = asyncio.create_task(runner.run(request_turn(1, evaluation=evaluation), seed=1))
    try:
        async with asyncio.timeout(60):
            while not runner.counters.resamples:
                await asyncio.sleep(0.05)
    finally:
        await bench.client.resume()
    result = await turn
    assert isinstance(result, TurnResult) and result.kept.length > 0
    assert {event.reason for attempt in result.rejected for event in attempt.events} == {"stuck"}
    assert await bench.count_running() == 0


async def test_a_turn_that_is_stuck_in_one_engine_is_sampled_by_another(
    bench: TurnBench, policies
) -> None:
    other = make_fake_engine(policies, bench.router.endpoint)
    engines = EnginePool([bench.url, await other.start()], key=KEY)
    runner = bench.runner(engines, progress_timeout_s=2.0)
    await bench.client.pause()
    try:
        result = await runner.run(request_turn(3), seed=3)
    finally:
        await bench.client.resume()
        await engines.close()
        await other.stop()
    assert isinstance(result, TurnResult) and result.kept.length > 0
    assert [event.reason for attempt in result.rejected for event in attempt.events] == ["stuck"]


@by_tap_and_stream
async def test_a_turn_whose_engine_ends_is_sampled_by_another(
    bench: TurnBench, policies, streams: bool
) -> None:
    other = make_fake_engine(policies, bench.router.endpoint)
    engines = EnginePool([await other.start(), bench.url], key=KEY)
    first, _ = engines
    runner = bench.runner(engines, mode="off", progress_timeout_s=30.0, streams=streams)
    await first.pause()
    turn = asyncio.create_task(runner.run(request_turn(5), seed=5))
    async with asyncio.timeout(10):
        while not other.generator.requests:
            await asyncio.sleep(0.01)
    await other.stop()  # ends the turn with "abort", as vLLM does when it is told to end
    result = await turn
    await engines.close()
    assert isinstance(result, TurnResult) and result.kept.length > 0 and result.rejected == []


@by_tap_and_stream
async def test_turn_gets_the_newest_weights_though_its_engine_restarted_unseen(
    policies, streams: bool
) -> None:
    """A turn is sampled with the newest weights though nobody saw its engine start again."""
    signals = f"tcp://127.0.0.1:{free_port()}"
    port = free_port()
    fake = make_fake_engine(policies, signals, port)
    made = await bind_bench(await fake.start(), signals, fake)
    listening = asyncio.create_task(made.router.run())
    weights = policies.second
    await made.engines.apply_weights(weights.file, 3, weights.checksum, deadline=20.0)
    await fake.stop()
    fake = make_fake_engine(policies, signals, port)
    await fake.start()
    runner = made.runner(mode="off", progress_timeout_s=30.0, streams=streams)
    result = await runner.run(request_turn(7), seed=7)
    listening.cancel()
    await made.engines.close()
    await fake.stop()
    made.router.close()
    assert (
        isinstance(result, TurnResult)
        and {span.version for span in result.kept.spans} == {3}
        and result.rejected == []
    )


async def test_a_stream_over_a_proxy_that_falls_silent_goes_to_another_engine_soon(
    policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy acknowledges all: TCP finds nothing out, and progress_timeout_s is far away."""
    monkeypatch.setattr(gate, "ALIVE_SECONDS", 0.1)
    monkeypatch.setattr(connection, "SILENT_SECONDS", 1.0)
    other = FakeEngine(policies.first.directory, key=KEY)
    async with fake_bench(policies) as bench, open_proxy(bench.url) as proxy:
        engines = EnginePool([proxy.url, await other.start()], key=KEY)
        first, _ = engines
        runner = bench.runner(engines, mode="off", streams=True)
        await bench.client.pause()
        turn = asyncio.create_task(runner.run(request_turn(9), seed=9))
        try:
            await asyncio.sleep(2.5)
            assert await bench.count_running() == 1 and first in engines.healthy(), "it is alive"
            assert await proxy.cut("silence") >= 1
            async with asyncio.timeout(20):
                result = await turn
        finally:
            await engines.close()
            await other.stop()
    assert isinstance(result, TurnResult) and result.kept.length > 0 and result.rejected == []


async def test_a_busy_engine_is_asked_again_when_it_says_and_is_not_suspect(policies) -> None:
    async with fake_bench(policies) as bench:
        asked = []

        async def answer_busy(request: web.Request, own: Handler) -> web.StreamResponse:
            asked.append((await request.json())["request_id"])
            if len(asked) <= MAX_RETRIES + 2:
                return web.Response(status=429, headers={"Retry-After": "0"})
            assert bench.engines.healthy()
            return await own(request)

        bench.fake.answer_by(answer_busy, GENERATE)
        runner = bench.runner(progress_timeout_s=20.0)
        assert isinstance(await runner.run(request_turn(14), seed=14), TurnResult)
        assert len(set(asked)) == len(asked) == MAX_RETRIES + 3  # a name of its own for each try
        asked.clear()
        given_up = await bench.runner(progress_timeout_s=0.05).run(request_turn(15), seed=15)
        assert isinstance(given_up, TurnFailed) and ": 429" in given_up.detail


async def test_a_turn_that_fails_in_every_engine_costs_its_episode_and_no_engine(
    bench: TurnBench,
) -> None:
    request = request_turn(6)
    refused = make_turn_request(request.key, [VOCABULARY + 5])
    result = await bench.runner(mode="off").run(refused, seed=6)
    assert isinstance(result, TurnFailed)
    assert isinstance(await bench.runner(mode="off").run(request, seed=6), TurnResult)


@by_tap_and_stream
async def test_an_engine_that_stays_stuck_costs_the_episode_and_says_which_setting(
    bench: TurnBench, streams: bool
) -> None:
    runner = bench.runner(progress_timeout_s=0.3, max_resamples=1, streams=streams)
    await bench.client.pause()
    try:
        result = await asyncio.wait_for(runner.run(request_turn(2), seed=2), 60)
    finally:
        await bench.client.resume()
    assert isinstance(result, TurnFailed) and "engine.progress_timeout_s" in result.detail
    await bench.await_idle()
