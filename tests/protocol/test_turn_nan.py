"""Turns of a model that computes NaN: no such token is recorded, and no healthy engine is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

import engine.pool as pool_module
from engine.connection import EngineError
from engine.fake.generation import Generator, Request
from engine.pool import EnginePool, Health
from protocol.messages import (
    TurnFailed,
    TurnResult,
)
from tests.fixtures.engines import KEY
from tests.fixtures.turns import (
    by_tap_and_stream,
    fake_bench,
    request_turn,
)


@by_tap_and_stream
async def test_a_turn_whose_row_is_not_a_number_is_sampled_again_and_the_others_are_not(
    policies, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    async with fake_bench(policies) as bench:
        # The first try.
        poisoned = poison(monkeypatch, lambda request: "t11.0.0.0.0.0." in request.id)
        runner = bench.runner(progress_timeout_s=20.0, early_stall=0.0, streams=streams)
        results = await asyncio.gather(
            *(runner.run(request_turn(number), seed=number) for number in (10, 11, 12))
        )
        assert all(isinstance(result, TurnResult) for result in results)
        recorded = [np.isfinite(result.kept.signal_table()).all() for result in results]
        assert poisoned and all(recorded) and not any(result.rejected for result in results)
        assert [health for health, _ in bench.engines.status().values()] == [Health.HEALTHY]
        assert bench.router.reader.dropped_frames == 0


async def test_a_turn_that_is_never_a_number_costs_its_episode_and_says_so(
    policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_bench(policies) as bench:
        poison(monkeypatch, lambda request: request.id.startswith("generate-tokens-t11."))
        runner = bench.runner(progress_timeout_s=20.0)
        bad, good = await asyncio.gather(
            *(runner.run(request_turn(number), seed=number) for number in (11, 12))
        )
        assert isinstance(bad, TurnFailed) and "computed NaN or infinity for token 0" in bad.detail
        assert isinstance(good, TurnResult)
        assert [health for health, _ in bench.engines.status().values()] == [Health.HEALTHY]


async def test_engine_that_computes_nan_gets_no_turns_until_it_has_reloaded_its_weights(
    policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that computes no numbers gets no turns until it has loaded its weights again."""
    monkeypatch.setattr(pool_module, "PROBE_EVERY_S", 0.05)
    async with fake_bench(policies) as bench:
        pool = EnginePool([bench.url], no_engine_patience_s=0.0, key=KEY)
        weights = policies.second
        generator = bench.fake.generator
        await pool.apply_weights(weights.file, 3, weights.checksum, deadline=20.0)
        for tensor in generator.weights().values():
            tensor.fill_(float("nan"))
        # Nor do those of the file, for a while.
        monkeypatch.setattr(generator, "load", lambda *_: None)
        runner = bench.runner(pool, progress_timeout_s=20.0)
        turn = asyncio.create_task(runner.run(request_turn(13), seed=13))
        async with asyncio.timeout(20):
            while pool.healthy():
                await asyncio.sleep(0.01)
        with pytest.raises(
            EngineError, match=r"fit for turns .*computed NaN or infinity .* engine\.dtype"
        ):
            pool.check()
        monkeypatch.undo()
        result = await asyncio.wait_for(turn, 20)
        await pool.close()
        assert isinstance(result, TurnResult)
        assert {span.version for span in result.kept.spans} == {3}


def poison(monkeypatch: pytest.MonkeyPatch, is_chosen: Callable[[Request], bool]) -> set[str]:
    """Have the model compute NaN for chosen requests; returns their names, once it has."""
    compute = Generator.compute_logits
    poisoned = set()

    def compute_nan(self: Generator, request: Request):
        logits = compute(self, request)
        if not is_chosen(request):
            return logits
        poisoned.add(request.id)
        return logits * float("nan")

    monkeypatch.setattr(Generator, "compute_logits", compute_nan)
    return poisoned
