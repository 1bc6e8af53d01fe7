"""Claims, as the controller relies on them: an engine is one run's, and nobody's with no key."""

from __future__ import annotations

import asyncio

import pytest

from engine import launch as server
from engine.client import EngineClient, EngineError, Sampling
from engine.connection import EngineTaken
from engine.fake.server import FakeEngine
from engine.launch import EngineNotReady, wait_ready
from engine.plugin import auth as gate
from engine.pool import EnginePool
from tests.fixtures.engines import (
    KEY,
    Engine,
)


async def test_the_engine_is_healthy(engine: Engine) -> None:
    assert await engine.client.health()


async def test_without_the_key_it_says_nothing_but_that_it_lives(engine: Engine) -> None:
    """The routes that pause it or change its weights included, which vLLM's own key leaves open."""
    for key in ("", KEY[:-1], KEY + "x"):
        stranger = EngineClient(engine.url, key)
        file = engine.policies.second
        try:
            assert await stranger.health()
            for call in (
                stranger.pause(),
                stranger.resume(),
                stranger.weight_version(),
                stranger.abort("turn"),
                stranger.start_update(),
                stranger.check_weights(file.file, file.checksum),
                stranger.update_weights(file.file, 1, []),
                stranger.finish_update(1),
                stranger.checksums(),
                stranger.generate(
                    "turn", [1], Sampling(max_tokens=1, cache_salt=""), watched=False
                ),
            ):
                with pytest.raises(EngineError, match="401"):
                    await call
        finally:
            await stranger.close()
    assert not await engine.client.is_paused()


async def test_an_engine_is_one_runs_at_a_time(engine: Engine) -> None:
    """An engine lets in whoever names no run, and one run at a time.

    Of the other run none of the calls is carried out, and it ends.
    """
    first = EngineClient(engine.url, KEY, "first")
    resumed = EngineClient(engine.url, KEY, "first")
    pool = EnginePool([engine.url], key=KEY, run="second")
    (second,) = pool
    try:
        version = await first.weight_version()
        for call in (
            second.pause(),
            second.weight_version(),
            second.reset_version(),
            second.abort("turn"),
            second.generate("turn", [1], Sampling(max_tokens=1, cache_salt=""), watched=False),
        ):
            with pytest.raises(EngineTaken, match="another run uses this engine"):
                await call
        with pytest.raises(EngineTaken, match=r"engine\.urls"):
            pool.check()
        assert await resumed.weight_version() == version and not await engine.client.is_paused()
    finally:
        for client in (first, resumed):
            await client.close()
        await pool.close()


async def test_a_run_that_has_ended_leaves_its_engine_to_the_next_at_once(engine: Engine) -> None:
    first = EnginePool([engine.url], key=KEY, run="ended")
    second = EngineClient(engine.url, KEY, "next")
    (client,) = first
    try:
        await client.weight_version()
        with pytest.raises(EngineTaken):
            await second.weight_version()
        await first.close()
        await second.weight_version()
    finally:
        await first.close()
        await second.close()


async def test_run_is_refused_an_engine_that_another_has_until_that_is_silent(
    policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that comes while another has the engine is refused until that is silent."""
    monkeypatch.setattr(server, "CLAIM_SECONDS", 0.2)
    monkeypatch.setattr(server, "CLAIM_EVERY", 0.02)
    fake = FakeEngine(policies.first.directory)
    url = await fake.start()
    try:
        await wait_ready(url, 20.0, run="first")
        with pytest.raises(EngineNotReady, match=r"engine\.urls: another run uses the engine at "):
            await wait_ready(url, 20.0, run="second")
        await wait_ready(url, 20.0, run="first")
        monkeypatch.setattr(gate, "LAPSES_SECONDS", 0.1)
        await wait_ready(url, 20.0, run="first")  # whose last word it is: it is killed
        await wait_ready(url, 20.0, run="second")
    finally:
        await fake.stop()


async def test_a_run_keeps_its_engines_while_it_asks_for_no_turns(
    policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "LAPSES_SECONDS", 1.0)
    monkeypatch.setattr("engine.pool.WATCH_EVERY_S", 0.05)
    fake = FakeEngine(policies.first.directory)
    pool = EnginePool([await fake.start()], run="first")
    (client,) = pool
    other = EngineClient(client.url, run="second")
    await client.weight_version()
    watching = asyncio.create_task(pool.watch())
    try:
        for _ in range(15):
            await asyncio.sleep(0.1)
            with pytest.raises(EngineTaken):
                await other.weight_version()
    finally:
        watching.cancel()
        await pool.close()
        await other.close()
        await fake.stop()
