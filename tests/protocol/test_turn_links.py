"""Turns whose link to the engine is cut: what is recorded is the response that was kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from engine.pool import EnginePool
from protocol.arrays import FLOAT32, INT32, UINT8, unpack
from protocol.messages import EpisodeKey, ForceTokens, Response, SignalFrame, TurnResult
from tests.fixtures.engines import KEY, Policies, Weights, distributions, some_prompt
from tests.fixtures.messages import make_turn_request
from tests.fixtures.proxy import open_proxy
from tests.fixtures.turns import (
    TOKENS,
    TurnBench,
)

UNNOTICED = ("the server's end", "silence")
"""Ways of which the controller hears nothing: it waits until no progress is made."""


async def await_settled(count: Callable[[], int]) -> None:
    """Wait until `count` has not changed for half a second."""
    last = -1
    while last != count():
        last = count()
        await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    "way", ["both ends", "the client's end", "the server's end", "silence", "delay"]
)
async def test_turn_records_the_kept_response_however_the_link_is_cut(
    bench: TurnBench, policies: Policies, way: str
) -> None:
    """The link is cut once the engine has generated some tokens.

    Signals come beside it, of a response whose answer is lost, too.
    """
    tokens = 300
    rows = Counter()
    observe = bench.router.observe

    def count_rows(frame: SignalFrame) -> list[ForceTokens]:
        rows.update(name for name in frame.turn_ids if not name.startswith("probe"))
        return observe(frame)

    bench.router.observe = count_rows
    prompt = [*some_prompt("cut", tokens=20), TOKENS.tags.opening[0][0]]
    async with open_proxy(bench.url) as proxy:
        engines = EnginePool([proxy.url], key=KEY)
        runner = bench.runner(
            engines,
            tokens=tokens,
            mode="budget",
            max_thinking=6,
            min_thinking=1,
            progress_timeout_s=2.0 if way in UNNOTICED else 10.0,
        )
        request = make_turn_request(EpisodeKey(9, 0), prompt)
        turn = asyncio.create_task(runner.run(request, seed=9))
        async with asyncio.timeout(60):
            while rows.total() < 8:
                await asyncio.sleep(0.001)
        if way == "silence":
            go_on = proxy.hold()
            # Signals do not go over this link: a turn that they come of goes on.
            await await_settled(rows.total)
            asyncio.get_running_loop().call_later(3.0, go_on)
        elif way == "delay":
            asyncio.get_running_loop().call_later(0.3, proxy.hold())
        else:
            await proxy.cut(way)
        result = await asyncio.wait_for(turn, 60)
        await engines.close()
    assert isinstance(result, TurnResult)
    assert len(rows) == (1 if way == "delay" else 2)
    lost = next(iter(rows))
    assert way in ("delay", "silence") or rows[lost] < tokens  # it was ended in the engine
    assert_of_policy(result.kept, policies.first, prompt)
    await bench.await_idle()


def assert_of_policy(kept: Response, weights: Weights, prompt: list[int]) -> None:
    """Assert that entropies and log-probs of a response are those of the policy."""
    response = unpack(kept.tokens, INT32).tolist()
    expected = distributions(weights.directory, prompt, response)
    entropy = -(expected.exp() * expected).sum(-1)
    assert kept.signal_table()[:, 0] == pytest.approx(entropy.numpy(), abs=1e-3)
    mask = unpack(kept.mask, UINT8) > 0
    log_probs = unpack(kept.log_probs, FLOAT32)
    own = expected[range(len(response)), response].numpy()
    assert log_probs[mask] == pytest.approx(own[mask], abs=1e-3)
    assert (log_probs[~mask] == 0).all()
