"""Signals of turns, and their names: what ends a turn early, what is progress, what no signal."""

from __future__ import annotations

import asyncio
from math import isnan

import pytest
import zmq.asyncio

from controller.rules.early_stop import FIRST_LOOK
from controller.rules.thinking import RuleSpec, ThinkingSettings
from controller.signals import InterventionMode, NoProgressError, WatchedTurn
from engine.client import EngineClient
from protocol.arrays import FLOAT32, INT32, pack, unpack
from protocol.codec import encode
from protocol.messages import (
    SignalFrame,
    StopReason,
    TurnResult,
)
from tests.fixtures.engines import VOCABULARY
from tests.fixtures.messages import make_tags
from tests.fixtures.turns import (
    TurnBench,
    by_tap_and_stream,
    request_turn,
)


@by_tap_and_stream
async def test_a_turn_that_is_all_but_certain_to_be_stalled_is_ended_and_sampled_again(
    bench: TurnBench, streams: bool
) -> None:
    """An eta so large that every turn but the first is stalled from the first look on.

    By itself the response that is ended has about 500 tokens, of either engine: it is not done
    when this process, which may be busy, looks at it.
    """
    runner = bench.runner(tokens=700, eta=1e3, early_stall=0.05, max_resamples=1, streams=streams)
    first, second = [await runner.run(request_turn(14, turn=turn), seed=14) for turn in (0, 1)]
    assert isinstance(first, TurnResult) and not first.rejected
    assert (
        isinstance(second, TurnResult) and second.kept.stop is not StopReason.EARLY
    )  # nothing follows the last sample
    (rejected,) = second.rejected
    assert [event.reason for event in rejected.events] == ["early"]
    assert rejected.stop is StopReason.EARLY and FIRST_LOOK <= rejected.length < 250
    assert runner.counters.rejected_tokens >= rejected.length
    await bench.await_idle()


async def test_an_eta_is_in_force_only_where_a_turn_was_scored_before(bench: TurnBench) -> None:
    """A first turn cannot stall: it must not count where the share of stalled ones is estimated."""
    runner = bench.runner(eta=1e3, max_resamples=1)
    first, second = [await runner.run(request_turn(15, turn=turn), seed=15) for turn in (0, 1)]
    assert isinstance(first, TurnResult) and isnan(first.kept.eta)
    assert isinstance(second, TurnResult) and second.kept.eta == 1e3


@pytest.mark.parametrize(
    ("streams", "decide_in"),
    [(False, "controller"), (False, "engine"), (True, "controller")],
    ids=["tap", "engine", "stream"],
)
async def test_thought_that_the_prompt_has_opened_is_cut(
    bench: TurnBench, streams: bool, decide_in: str
) -> None:
    """Its first token is the response's, and the closing tokens are forced and not trained on."""
    runner = bench.runner(
        streams=streams, decide_in=decide_in, mode="budget", max_thinking=5, begins_inside=True
    )
    result = await runner.run(request_turn(21), seed=21)
    assert isinstance(result, TurnResult)
    kept = result.kept
    (event,) = kept.events
    assert (event.reason, event.position, kept.thought_start) == ("budget", 4, 0)
    forced = kept.forced().nonzero()[0].tolist()
    assert unpack(kept.tokens, INT32)[forced].tolist() == [2, 3]
    is_exact = streams or decide_in == "engine"
    assert forced[0] == 4 if is_exact else forced[0] >= 4
    assert kept.thinking == forced[0] + 1


async def test_a_turn_that_waits_for_its_place_is_not_stuck_while_others_go_on(
    bench: TurnBench,
) -> None:
    """A turn that waits for its place is not stuck while others go on.

    Of two turns the engine never begins one, and says so many times something about the other.
    """
    settings = ThinkingSettings("paper", 0.4, VOCABULARY, "mean", 7, -1.0, 16, 450)
    for turn in ("goes on", "waits"):
        bench.router.watch(
            turn,
            WatchedTurn(RuleSpec(settings, make_tags(1, 2), []).build(), InterventionMode.OBSERVE),
        )
    never = asyncio.Event().wait()
    waiting = asyncio.create_task(
        bench.router.await_response("waits", never, 0.4, bench.engines.awake_since)
    )
    for position in range(10):
        await asyncio.sleep(0.1)
        bench.router.observe(frame("goes on", position))
        assert not waiting.done()
    with pytest.raises(NoProgressError):
        await waiting


async def test_a_signal_at_a_position_that_no_response_has_is_refused_and_changes_nothing(
    bench: TurnBench,
) -> None:
    """A signal at a position that no response has is refused, and changes nothing.

    A rule keeps something for each position before it: for all below 2**31 the controller would
    need minutes and its memory.
    """
    settings = ThinkingSettings("paper", 0.4, VOCABULARY, "mean", 7, -1.0, 16, 450)
    rule = RuleSpec(settings, make_tags(1, 2), []).build()
    engine = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    bench.router.watch("under way", WatchedTurn(rule, InterventionMode.OBSERVE))
    engine.connect(bench.router.endpoint)
    for position in (5000, 0):
        await engine.send(encode(frame("under way", position)))
    await bench.router.finish("under way", tokens=1, patience=20.0)
    engine.close(linger=0)
    assert len(rule.scores) == 1 and bench.router.reader.dropped_frames == 1


def frame(turn_id: str, position: int) -> SignalFrame:
    number = pack([0.5], FLOAT32)
    whole = pack([-1], INT32)
    return SignalFrame(
        step=position,
        turn_ids=[turn_id],
        position=pack([position], INT32),
        entropy=number,
        confidence=number,
        top_log_prob=pack([-0.5], FLOAT32),
        forced=whole,
        previous=whole,
    )


async def test_engine_hears_other_names_for_the_same_turn_from_another_process(
    bench: TurnBench, monkeypatch
) -> None:
    """An engine hears other names for the same turn from another process.

    It may keep forced tokens and rules by the one, and prefixes by the other, of a run that is
    over.
    """
    heard = []
    generate = EngineClient.generate

    def listening(self, turn_id, prompt, sampling, **how):
        heard.append((turn_id, sampling.cache_salt))
        return generate(self, turn_id, prompt, sampling, **how)

    monkeypatch.setattr(EngineClient, "generate", listening)
    for _ in range(2):
        await bench.runner(mode="off").run(request_turn(8), seed=8)
    assert [len(set(names)) for names in zip(*heard, strict=True)] == [2, 2]
