"""Turns without our plugin's signals: the same tests against the fake engine and against vLLM."""

from __future__ import annotations

import asyncio
from math import exp, log

import msgspec
import pytest
from aiohttp import ClientSession, web

from controller.rules.thinking import RuleSpec, ThinkingRule, ThinkingSettings
from controller.rules.topk_bounds import estimate_from_topk
from controller.streaming import (
    LISTED_LOG_PROBS,
    StreamControl,
    StreamedTurn,
    StreamingController,
)
from engine.client import EngineClient, EngineError, EngineUnreachable, Sampling
from engine.constants import ALIVE_HEADER
from engine.plugin import auth as gate
from tests.fixtures.engines import KEY, TOP_J, VOCABULARY, Engine, some_prompt
from tests.fixtures.messages import make_tags
from tests.fixtures.servers import serve_app


def sampling(seed: int, max_tokens: int = 60) -> Sampling:
    return Sampling(max_tokens=max_tokens, cache_salt=f"stream{seed}", seed=seed)


def rule_for(first: int, epsilon: float) -> RuleSpec:
    """A rule that takes the token `first` for <think>."""
    settings = ThinkingSettings("paper", 0.4, VOCABULARY, "mean", 2, epsilon, 4, 25)
    return RuleSpec(settings, make_tags(first, VOCABULARY - 1), [VOCABULARY - 1, 22])


async def streamed(
    engine: Engine,
    name: str,
    seed: int,
    delegated: RuleSpec,
    *,
    max_tokens: int = 60,
    steers: bool = True,
) -> tuple[StreamedTurn, ThinkingRule]:
    rule = delegated.build()
    streamer = StreamingController(VOCABULARY, TOP_J, progress_timeout_s=30.0)
    prompt = some_prompt(f"stream {seed}")
    turn = await streamer.generate(
        engine.client,
        name,
        prompt,
        sampling(seed, max_tokens),
        StreamControl(rule, delegated.closing_tokens, steers),
    )
    return turn, rule


async def first_token(engine: Engine, seed: int) -> int:
    return (
        await engine.start(prompt=some_prompt(f"stream {seed}"), seed=seed, max_tokens=2)[2]
    ).tokens[0]


async def test_a_stream_is_the_same_response_with_its_weights_and_log_probs(engine: Engine) -> None:
    for seed in range(4):
        turn, rule = await streamed(engine, f"same{seed}", seed, rule_for(-5, -1.0))
        plain = await engine.start(prompt=some_prompt(f"stream {seed}"), seed=seed, max_tokens=60)[
            2
        ]
        assert turn.generation.tokens == plain.tokens and turn.generation.spans == plain.spans
        assert turn.generation.log_probs == pytest.approx(plain.log_probs, abs=1e-4)
        assert turn.generation.finish_reason == plain.finish_reason == "length"
        assert (turn.wasted_tokens, turn.cut, len(rule.scores)) == (0, False, 60)


async def test_estimated_signals_are_near_the_exact_ones(engine: Engine) -> None:
    turn_id, _, task = engine.start(prompt=some_prompt("stream 7"), seed=7, max_tokens=40)
    exact = await engine.watcher.until(turn_id, len((await task).tokens))
    _, rule = await streamed(engine, "near", 7, rule_for(-5, -1.0), max_tokens=40)
    estimates = list(zip(*rule.signals, strict=True))
    assert estimates[2] == pytest.approx(exact.top_log_prob, abs=1e-3)
    # TOP_J tokens of a nearly uniform policy: the middle of wide bounds.
    assert all(abs(h - e) < 1.5 for h, e in zip(estimates[0], exact.entropy, strict=True))


async def test_a_stream_shows_only_the_tokens_that_top_k_and_top_p_leave(engine: Engine) -> None:
    """What cannot be sampled is in no signal; the log-probs of what can are those of a plain turn.

    Its rule sees a distribution over four tokens, of which no entropy exceeds log 4.
    """
    decoding = msgspec.structs.replace(sampling(7, 40), temperature=0.6, top_k=4, top_p=0.9)
    prompt = some_prompt("stream 7")
    chunks = engine.client.stream("narrow", prompt, decoding, log_probs=LISTED_LOG_PROBS)
    entries = [entry async for chunk in chunks for entry in chunk.log_probs]
    for entry in entries:
        left = [*entry.top, *entry.others]
        assert 1 <= len(left) <= 4
        assert sum(map(exp, left)) == pytest.approx(1.0, abs=1e-4)
        entropy, _, _ = estimate_from_topk(entry.top, entry.others, VOCABULARY, TOP_J)
        assert -1e-3 <= entropy <= log(4) + 1e-2
    plain = await engine.client.generate("plain", prompt, decoding, watched=False)
    streamed_log_probs = [entry.log_prob for entry in entries]
    assert streamed_log_probs == pytest.approx(plain.log_probs, abs=1e-4)


async def test_thinking_is_cut_at_the_token_of_the_decision_and_goes_on_after_the_queue(
    engine: Engine,
) -> None:
    cut = 0
    for seed in range(6):
        delegated = rule_for(await first_token(engine, seed), 0.15)
        whole, watching = await streamed(engine, f"whole{seed}", seed, delegated, steers=False)
        turn, rule = await streamed(engine, f"cut{seed}", seed, delegated)
        assert watching.intervention == rule.intervention
        if not turn.cut:
            assert rule.intervention is None
            continue
        cut += 1
        at = rule.intervention.position
        generation = turn.generation
        assert generation.tokens[:at] == whole.generation.tokens[:at]
        assert generation.tokens[at : at + 2] == delegated.closing_tokens
        assert len(generation.tokens) == 60 and generation.finish_reason == "length"
        assert rule.forced == [at <= position < at + 2 for position in range(60)]
        assert generation.spans[0].start == 0 and generation.spans[-1].stop == 60
        assert all(
            a.stop == b.start for a, b in zip(generation.spans, generation.spans[1:], strict=False)
        )
        assert 1 <= turn.wasted_tokens <= 60 - at
    assert cut


async def test_a_decision_in_the_last_tokens_leaves_room_for_the_queue_alone(
    engine: Engine,
) -> None:
    seed = 3
    delegated = rule_for(
        await first_token(engine, seed), 1.0
    )  # cuts as soon as it may: after four tokens of thinking
    turn, rule = await streamed(engine, "short", seed, delegated, max_tokens=6)
    at = rule.intervention.position
    assert turn.generation.tokens[at:] == delegated.closing_tokens[: 6 - at]
    assert (len(turn.generation.tokens), turn.generation.finish_reason) == (6, "length")


@pytest.mark.parametrize("part", ["", ".cut"], ids=["before the decision", "after it"])
async def test_a_stream_that_the_engine_ends_by_itself_is_an_error(
    engine: Engine, part: str
) -> None:
    seed = 3
    delegated = rule_for(
        await first_token(engine, seed), 1.0
    )  # cuts, where it is to, after four tokens of thinking
    task = asyncio.create_task(
        streamed(engine, "ended", seed, delegated, max_tokens=700, steers=bool(part))
    )
    while not task.done():
        await engine.client.abort(
            f"ended{part}"
        )  # for the streamer, as if an engine were told to end
    with pytest.raises(EngineError, match=f"ended turn ended{part}, which nobody asked for"):
        await task


async def test_a_stream_that_waits_says_that_it_is_alive(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.kind == "fake":
        monkeypatch.setattr(gate, "ALIVE_SECONDS", 0.05)
    params = {"max_tokens": 4, "logprobs": 1, "detokenize": False}
    body = {"token_ids": [1, 2, 3], "sampling_params": params, "stream": True}
    headers = {"Authorization": gate.bearer(KEY)}
    await engine.client.pause()
    try:
        async with (
            asyncio.timeout(60),
            ClientSession(headers=headers) as session,
            session.post(f"{engine.url}/inference/v1/generate", json=body) as response,
        ):
            assert float(response.headers[ALIVE_HEADER]) == gate.ALIVE_SECONDS
            first = await response.content.readexactly(len(gate.COMMENT))
            assert first == gate.COMMENT
            await engine.client.resume()
            rest = await response.content.read()
    finally:
        await engine.client.resume()
    assert rest.rstrip().endswith(b"data: [DONE]")


async def test_a_prompt_outside_the_vocabulary_is_an_error(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"/inference/v1/generate: [^{]"):
        async for _ in engine.client.stream("bad", [VOCABULARY + 5], sampling(0), log_probs=2):
            pass


async def test_a_stream_that_breaks_off_is_an_unreachable_engine() -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(
            b'data: {"choices": [{"token_ids": [5], '
            b'"logprobs": {"content": [{"logprob": -1.0}]}}]}\n\n'
        )
        return response

    app = web.Application()
    app.router.add_post("/inference/v1/generate", broken)
    async with serve_app(app) as url:
        client = EngineClient(url)
        with pytest.raises(EngineUnreachable, match="ended before the response did"):
            async for _ in client.stream("turn", [1], sampling(0), log_probs=2):
                pass
        await client.close()
