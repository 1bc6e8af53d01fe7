"""Turns that are canceled leave nothing behind, in the controller or in the engine."""

from __future__ import annotations

import asyncio
import random

from controller.rules.thinking import RuleSpec, ThinkingSettings
from controller.streaming import StreamControl, StreamingController
from engine.client import Sampling
from protocol.messages import (
    TurnResult,
)
from tests.fixtures.engines import TOP_J, VOCABULARY, some_prompt
from tests.fixtures.turns import (
    TOKENS,
    TurnBench,
    request_turn,
)


async def test_a_canceled_stream_ends_its_turn_in_the_engine(bench: TurnBench) -> None:
    settings = ThinkingSettings("paper", 0.4, VOCABULARY, "mean", 2, -1.0, 4, 25)
    delegated = RuleSpec(settings, TOKENS.tags, TOKENS.closing_tokens)
    rule = delegated.build()
    streamer = StreamingController(VOCABULARY, TOP_J, progress_timeout_s=30.0)
    sampling = Sampling(max_tokens=900, cache_salt="gone", seed=1)
    call = streamer.generate(
        bench.client,
        "gone",
        some_prompt("gone"),
        sampling,
        StreamControl(rule, delegated.closing_tokens, steers=True),
    )
    task = asyncio.create_task(call)
    async with asyncio.timeout(30):
        while len(rule.scores) < 3:
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() and len(rule.scores) < 900
    await bench.await_idle()


async def test_a_thousand_turns_canceled_at_random_moments_leave_nothing_behind(
    bench: TurnBench,
) -> None:
    runner = bench.runner()
    rng = random.Random(0)
    under_way: set[asyncio.Task] = set()
    for number in range(1000):
        task = asyncio.create_task(runner.run(request_turn(number), seed=number))
        under_way.add(task)
        if len(under_way) >= 48:
            await asyncio.sleep(rng.random() * 0.02)
            for victim in rng.sample(sorted(under_way, key=id), 16):
                victim.cancel()
            await asyncio.gather(
                *(t for t in under_way if t.cancelling() or t.done()), return_exceptions=True
            )
            under_way = {t for t in under_way if not t.done()}
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    for number in range(1000):
        runner.forget(request_turn(number).key, 0)
    assert not len(bench.router) and not runner.scores
    await bench.await_idle()
    assert isinstance(await runner.run(request_turn(5000), seed=0), TurnResult)
