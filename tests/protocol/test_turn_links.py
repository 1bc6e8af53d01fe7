"""Turns whose link to the engine is cut: what is recorded is the response that was kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from engine.pool import EnginePool
from protocol.arrays import FLOAT32, INT32, UINT8, unpack
from protocol.messages import (
    EpisodeKey,
    ForceTokens,
    SignalFrame,
    TurnResult,
)
from tests.fixtures.engines import KEY, Link, distributions, some_prompt
from tests.fixtures.messages import make_turn_request
from tests.fixtures.turns import (
    TOKENS,
    TurnBench,
)


async def await_settled(count: Callable[[], int]) -> None:
    """Wait until `count` has not changed for half a second."""
    last = -1
    while last != count():
        last = count()
        await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    "way", ["both ends", "the controller's end", "the engine's end", "silence", "delay"]
)
async def test_turn_records_the_kept_response_however_the_link_is_cut(
    bench: TurnBench, policies, way: str
) -> None:
    """The link is cut once the engine has generated some tokens.

    Signals come beside it, of a response whose answer is lost, too.
    """
    tokens = 300
    rows = Counter()
    observe = bench.router.observe

    def count_rows(frame: SignalFrame) -> list[ForceTokens]:
        rows.update(frame.turn_ids)
        return observe(frame)

    bench.router.observe = count_rows
    async with Link(bench.url) as link:
        engines = EnginePool([link.url], key=KEY)
        runner = bench.runner(
            engines,
            tokens=tokens,
            mode="budget",
            max_thinking=6,
            min_thinking=1,
            progress_timeout_s=2.0 if way == "silence" else 10.0,
        )
        prompt = [*some_prompt("cut", tokens=20), TOKENS.open]
        request = make_turn_request(EpisodeKey(9, 0), prompt)
        turn = asyncio.create_task(runner.run(request, seed=9))
        async with asyncio.timeout(60):
            while rows.total() < 8:
                await asyncio.sleep(0.001)
        if way in ("silence", "delay"):
            go_on = link.hold()
            if way == "silence":
                # Signals do not go over this link: a turn that they come of goes on.
                await await_settled(rows.total)
            asyncio.get_running_loop().call_later(0.3 if way == "delay" else 3.0, go_on)
        else:
            link.cut(
                controllers_end=way != "the engine's end", engines_end=way != "the controller's end"
            )
        result = await asyncio.wait_for(turn, 60)
        await engines.close()
    assert isinstance(result, TurnResult)
    assert len(rows) == (1 if way == "delay" else 2)
    lost = next(iter(rows))
    assert way in ("delay", "silence") or rows[lost] < tokens  # it was ended in the engine
    kept = result.kept
    response = unpack(kept.tokens, INT32).tolist()
    expected = distributions(policies.first.directory, prompt, response)
    entropy = -(expected.exp() * expected).sum(-1)
    assert kept.signal_table()[:, 0] == pytest.approx(entropy.numpy(), abs=1e-3)
    mask = unpack(kept.mask, UINT8) > 0
    log_probs = unpack(kept.log_probs, FLOAT32)
    assert log_probs[mask] == pytest.approx(
        expected[range(len(response)), response].numpy()[mask], abs=1e-3
    )
    assert (log_probs[~mask] == 0).all()
    await bench.await_idle()
