"""The ledger of engines.

What fails gets nothing more, what is dead gives its turns back, what is back has the newest weights
first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

import engine.pool as pool_module
from engine.client import EngineError, EngineUnreachable, Sampling
from engine.pool import EnginePool, Health
from supervisor.endpoints import free_port
from tests.fixtures.engines import Policies, some_prompt
from tests.fixtures.faulty_engine import FaultyEngine

SAMPLING = Sampling(max_tokens=4, cache_salt="v0")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "PROBE_EVERY_S", 0.05)
    monkeypatch.setattr(pool_module, "PROBE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(pool_module, "DEAD_AFTER_S", 0.5)


@asynccontextmanager
async def engines(
    policies: Policies, ports: list[int], **settings: float
) -> AsyncIterator[tuple[EnginePool, list[FaultyEngine]]]:
    made = [FaultyEngine(policies.first.directory, port=port) for port in ports]
    pool = EnginePool([await engine.start() for engine in made], **settings)
    try:
        yield pool, made
    finally:
        await pool.close()
        for engine in made:
            await engine.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def put(pool: EnginePool, policies: Policies, version: int) -> float:
    weights = policies.second
    return await pool.apply_weights(weights.file, version, weights.checksum, deadline=20.0)


def healths(pool: EnginePool) -> list[Health]:
    return [health for health, _ in pool.status().values()]


async def test_an_engine_that_failed_gets_no_turns_until_it_answers(policies: Policies) -> None:
    port = free_port()
    async with engines(policies, [port, free_port()]) as (pool, made):
        first, second = pool
        await made[0].stop()
        pool.mark_suspect(first, "a test says so")
        for _ in range(3):
            async with pool.acquire() as engine:
                assert engine is second
        made[0] = FaultyEngine(policies.first.directory, port=port)
        await made[0].start()
        await until(lambda: healths(pool) == [Health.HEALTHY, Health.HEALTHY])
        async with pool.acquire(but=second) as engine:
            assert engine is first


async def test_an_engine_that_is_back_has_the_newest_weights_before_any_turn(
    policies: Policies,
) -> None:
    port = free_port()
    async with engines(policies, [port], no_engine_patience_s=20.0) as (pool, made):
        await put(pool, policies, 7)
        (client,) = pool
        await made[0].stop()
        pool.mark_suspect(client, "a test says so")
        waiting = asyncio.create_task(taken(pool))
        made[0] = FaultyEngine(policies.first.directory, port=port)
        await made[0].start()
        generation = await asyncio.wait_for(waiting, 20)
        assert {span.version for span in generation.spans} == {7}


async def taken(pool: EnginePool):
    async with pool.acquire() as engine:
        return await engine.generate("turn", some_prompt("turn"), SAMPLING, watched=False)


async def test_engines_that_sleep_load_no_weights_and_finish_no_turn(policies: Policies) -> None:
    """Weights and turns that come meanwhile wait until the engines are awake."""
    async with engines(policies, [free_port(), free_port()]) as (pool, made):
        await pool.sleep()
        assert [engine.asleep for engine in made] == [True, True]
        update = asyncio.create_task(put(pool, policies, 7))
        turn = asyncio.create_task(taken(pool))
        await until(lambda: any(engine.generator.requests for engine in made))
        assert pool.awake_since() >= time.monotonic() - 1.0
        assert not update.done() and not turn.done()
        await pool.wake_up()
        assert (await turn).tokens and await update >= 0.0
        assert pool.awake_since() < time.monotonic()
        assert [await engine.weight_version() for engine in pool] == [7, 7]


async def test_engine_that_missed_the_call_to_wake_is_woken_once_it_answers(
    policies: Policies,
) -> None:
    """One that was suspect when the others were woken gets no turn in its sleep."""
    async with engines(policies, [free_port(), free_port()]) as (pool, made):
        await put(pool, policies, 7)
        first, _ = pool
        await pool.sleep()
        pool.mark_suspect(first, "a test says so")
        await pool.wake_up()
        await until(lambda: healths(pool) == [Health.HEALTHY, Health.HEALTHY])
        assert [engine.asleep for engine in made] == [False, False]


@pytest.mark.slow
async def test_the_turns_of_a_dead_engine_end_so_that_others_can_have_them(
    policies: Policies,
) -> None:
    async with engines(policies, [free_port(), free_port()]) as (pool, made):
        first, _ = pool
        await first.pause()

        async def stuck() -> None:
            async with pool.acquire() as engine:
                assert engine is first
                await engine.generate("stuck", some_prompt("stuck"), SAMPLING, watched=False)

        turn = asyncio.create_task(stuck())
        await until(lambda: bool(made[0].generator.requests))
        made[0].hang()
        pool.mark_suspect(first, "a test says so")
        with pytest.raises(EngineUnreachable, match=f"{first.url} has not answered"):
            await asyncio.wait_for(turn, 20)
        assert healths(pool) == [Health.DEAD, Health.HEALTHY]


async def test_new_weights_do_not_wait_for_an_engine_that_is_gone(policies: Policies) -> None:
    async with engines(policies, [free_port(), free_port()]) as (pool, made):
        await made[0].stop()
        assert await put(pool, policies, 3) > 0
        assert healths(pool)[1] is Health.HEALTHY and healths(pool)[0] is not Health.HEALTHY
        assert made[1].generator.version == "3"


@pytest.mark.slow
async def test_the_first_weights_do_not_wait_for_an_engine_that_hangs(
    policies: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "PROBE_TIMEOUT_S", 2.0)
    async with engines(policies, [free_port(), free_port()]) as (pool, made):
        made[0].hang()
        async with asyncio.timeout(30):
            assert await put(pool, policies, 3) > 0
        assert healths(pool)[1] is Health.HEALTHY and healths(pool)[0] is not Health.HEALTHY


@pytest.mark.slow
async def test_engine_that_hung_at_the_first_weights_reports_no_version_of_an_earlier_run(
    policies: Policies,
) -> None:
    """The weights of an earlier run are no version of an engine that hung at the first ones."""
    async with engines(policies, [free_port(), free_port()]) as (pool, made):
        first, second = pool
        made[0].generator.version = "3"  # an earlier run has left that
        made[0].hang()
        await put(pool, policies, 3)
        assert healths(pool)[0] is not Health.HEALTHY
        made[0].answer_again()
        await until(lambda: healths(pool) == [Health.HEALTHY, Health.HEALTHY])
        assert await first.checksums() == await second.checksums()


async def test_weights_count_as_applied_only_once_an_engine_runs_them(policies: Policies) -> None:
    port = free_port()
    async with engines(policies, [port]) as (pool, made):
        (client,) = pool
        await made[0].stop()
        applying = asyncio.create_task(put(pool, policies, 3))
        await until(lambda: healths(pool) != [Health.HEALTHY])
        assert not applying.done()
        made[0] = FaultyEngine(policies.first.directory, port=port)
        await made[0].start()
        await asyncio.wait_for(applying, 20)
        assert await client.weight_version() == 3


async def test_a_refused_update_is_an_error_of_the_run(policies: Policies) -> None:
    async with engines(policies, [free_port()]) as (pool, _):
        with pytest.raises(EngineError, match="checksum"):
            await pool.apply_weights(policies.second.file, 1, "0" * 64, deadline=20.0)


@pytest.mark.parametrize("before", [None, 1])
async def test_new_weights_do_not_wait_for_an_engine_whose_core_is_dead(
    policies: Policies, before: int | None
) -> None:
    async with engines(policies, [free_port(), free_port()]) as (pool, made):
        if before:
            await put(pool, policies, before)
        made[0].lose_core()
        assert await put(pool, policies, 3) > 0
        assert healths(pool)[1] is Health.HEALTHY and healths(pool)[0] is not Health.HEALTHY


async def test_no_engine_for_too_long_is_an_error_that_names_them(policies: Policies) -> None:
    async with engines(policies, [free_port()], no_engine_patience_s=0.2) as (pool, made):
        pool.check()
        (client,) = pool
        await made[0].stop()
        pool.mark_suspect(client, "a test says so")
        await until(lambda: raises(pool, client.url))


def raises(pool: EnginePool, url: str) -> bool:
    try:
        pool.check()
    except EngineError as error:
        assert url in str(error) and "engine.start_seconds" in str(error)
        return True
    return False
