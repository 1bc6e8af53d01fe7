"""Sleep, as the controller relies on it: turns stand still, and go on as if nothing had been.

vLLM for CPUs gives no memory up, but does all else: what requests had of the KV cache is forgotten.
"""

from __future__ import annotations

import asyncio

from tests.fixtures.engines import Engine, agrees_with


async def test_engine_that_sleeps_stands_still_and_goes_on_where_it_was(engine: Engine) -> None:
    """What it had computed is computed again, and the response is that of the same weights."""
    await engine.run(engine.policies.first)
    turn_id, prompt, task = engine.start(max_tokens=300, temperature=0.0)
    await engine.watcher.until(turn_id, 3)
    await engine.client.sleep()
    _, _, late = engine.start(max_tokens=3)
    await asyncio.sleep(0.2)
    rows = len(engine.watcher.turns[turn_id].position)
    await asyncio.sleep(0.3)
    assert len(engine.watcher.turns[turn_id].position) == rows < 300
    assert not task.done() and not late.done()
    await engine.client.wake_up()
    generation = await task
    assert len(generation.tokens) == 300
    assert agrees_with(generation, engine.policies.first.directory, prompt)
    signals = await engine.watcher.until(turn_id, len(generation.tokens))
    assert sorted(set(signals.position)) == list(range(len(generation.tokens)))
    assert len((await late).tokens) == 3


async def test_engine_that_sleeps_and_wakes_twice_is_as_after_once(engine: Engine) -> None:
    """Whoever got no answer may ask again."""
    for _ in range(2):
        await engine.client.sleep()
    for _ in range(2):
        await engine.client.wake_up()
    version = await engine.run(engine.policies.first)
    _, _, task = engine.start(max_tokens=4)
    assert {span.version for span in (await task).spans} == {version}
