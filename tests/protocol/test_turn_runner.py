"""Turns against an engine that is paused, and turns that are canceled: nothing of them is left
behind. Fake engine and vLLM alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pytest
import zmq.asyncio
from aiohttp import web

from tests.fixtures.links import Proxy

pytest.importorskip("torch")
pytest.importorskip("transformers")

import engine.pool as pool_module
from config import Config, ControlSection, EngineSection, SamplingSection, T2poSection
from controller.rules.early_stop import FIRST_LOOK
from controller.rules.thinking import RuleSpec, ThinkingSettings
from controller.signals import InterventionMode, NoProgressError, SignalRouter, WatchedTurn
from controller.streaming import StreamControl, StreamingController
from controller.think_tokens import ThinkTokens
from controller.turns import MAX_RETRIES, TurnRunner
from engine import connection
from engine.client import GENERATE, EngineClient, Sampling
from engine.connection import EngineError
from engine.fake.generation import Generator, Request
from engine.fake.server import FakeEngine
from engine.plugin import auth as gate
from engine.plugin.auth import bearer
from engine.pool import EnginePool, Health
from protocol.arrays import FLOAT32, INT32, UINT8, pack, unpack
from protocol.codec import encode
from protocol.messages import (
    EpisodeKey,
    ForceTokens,
    SignalFrame,
    StopReason,
    TurnFailed,
    TurnRequest,
    TurnResult,
)
from supervisor.endpoints import free_port
from tests.fixtures.engines import KEY, TOP_J, VOCABULARY, Link, distributions, some_prompt

TOKENS = ThinkTokens(
    open=1, close=2, closing_tokens=[2, 3], end=[VOCABULARY - 1], vocabulary=VOCABULARY
)


HEADERS = {"Authorization": bearer(KEY)}


class Bench:
    """A controller's turns, and its engine."""

    def __init__(self, url: str, signals: str, fake: FakeEngine | None) -> None:
        self.url = url
        self.fake = fake
        self.engines = EnginePool([url], key=KEY)
        (self.client,) = self.engines
        self.router = SignalRouter(zmq.asyncio.Context(), signals, TOKENS, max_model_len=1024)

    def runner(
        self,
        engines: EnginePool | None = None,
        tokens: int = 40,
        progress_timeout_s: float = 120.0,
        mode: str = "t2po",
        max_thinking: int = 450,
        **t2po: object,
    ) -> TurnRunner:
        """`tokens`: of a response, at most."""
        fixed = {"intervention_rate": 0.0, "resample_rate": 0.0, "eta": 0.0}
        config = Config(
            control=ControlSection(
                mode=mode, max_thinking=max_thinking, t2po=T2poSection(**fixed | t2po)
            ),
            sampling=SamplingSection(max_tokens=tokens, per_request_seeds=True),
            engine=EngineSection(max_model_len=1024, progress_timeout_s=progress_timeout_s),
        )
        return TurnRunner(config, engines or self.engines, self.router, TOKENS)

    async def running(self) -> int:
        """Requests in the engine."""
        if self.fake is not None:
            return sum(request.finish_reason is None for request in self.fake._generator.requests)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/metrics", headers=HEADERS) as response,
        ):
            lines = (await response.text()).splitlines()
        counts = [
            line
            for line in lines
            if line.startswith(("vllm:num_requests_running{", "vllm:num_requests_waiting{"))
        ]
        assert len(counts) >= 2
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in counts))


@pytest.fixture(
    params=["fake", pytest.param("vllm", marks=[pytest.mark.real_engine, pytest.mark.slow])]
)
async def bench(request: pytest.FixtureRequest, policies) -> AsyncIterator[Bench]:
    if request.param == "fake":
        async with fake_bench(policies) as made:
            yield made
        return
    real = request.getfixturevalue("real_engine")
    async with serving(await _bound(real.url, real.signals, None)) as made:
        yield made


@contextlib.asynccontextmanager
async def fake_bench(policies) -> AsyncIterator[Bench]:
    signals = f"tcp://127.0.0.1:{free_port()}"
    fake = FakeEngine(policies.first.directory, signals=signals, top_j=TOP_J, key=KEY)
    async with serving(await _bound(await fake.start(), signals, fake)) as made:
        yield made
    await fake.stop()


@contextlib.asynccontextmanager
async def serving(made: Bench) -> AsyncIterator[Bench]:
    """While signals are listened to, and the engine has connected to where they are.

    An engine that outlives a test connects to the next one's router 0.1 s to 0.2 s later, and
    meanwhile keeps its signals back: a turn could end before its first one came.
    """
    await made.client.resume()  # a test that failed may have left the shared one paused
    listening = asyncio.create_task(made.router.run())
    try:
        assert await made.router.probe(made.client), "the engine sends no signals"
        yield made
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        made.router.close()
        await made.engines.close()


async def _bound(url: str, signals: str, fake: FakeEngine | None) -> Bench:
    """Once the port is free: an earlier test may have left it a moment ago."""
    for _ in range(100):
        with contextlib.suppress(zmq.ZMQError):
            return Bench(url, signals, fake)
        await asyncio.sleep(0.05)
    raise AssertionError(f"{signals} stays in use")


def asking(number: int, turn: int = 0, *, evaluation: bool = False) -> TurnRequest:
    key = EpisodeKey(number, 0, evaluation)
    return TurnRequest(
        key=key,
        lease_attempt=0,
        turn_index=turn,
        prompt=pack(some_prompt(str(number), tokens=20), INT32),
    )


@pytest.mark.parametrize("evaluation", [False, True], ids=["training", "evaluation"])
async def test_a_turn_that_makes_no_progress_is_sampled_again(
    bench: Bench, evaluation: bool
) -> None:
    runner = bench.runner(progress_timeout_s=2.0)
    await bench.client.pause()
    turn = asyncio.create_task(runner.run(asking(1, evaluation=evaluation), seed=1))
    try:
        async with asyncio.timeout(60):
            while not runner.counters.resamples:
                await asyncio.sleep(0.05)
    finally:
        await bench.client.resume()
    result = await turn
    assert isinstance(result, TurnResult) and result.kept.length > 0
    assert {event.reason for attempt in result.rejected for event in attempt.events} == {"stuck"}
    assert await bench.running() == 0


async def test_a_turn_that_is_stuck_in_one_engine_is_sampled_by_another(
    bench: Bench, policies
) -> None:
    other = FakeEngine(
        policies.first.directory, signals=bench.router.endpoint, top_j=TOP_J, key=KEY
    )
    engines = EnginePool([bench.url, await other.start()], key=KEY)
    runner = bench.runner(engines, progress_timeout_s=2.0)
    await bench.client.pause()
    try:
        result = await runner.run(asking(3), seed=3)
    finally:
        await bench.client.resume()
        await engines.close()
        await other.stop()
    assert isinstance(result, TurnResult) and result.kept.length > 0
    assert [event.reason for attempt in result.rejected for event in attempt.events] == ["stuck"]


@pytest.mark.parametrize("streams", [False, True], ids=["tap", "stream"])
async def test_a_turn_whose_engine_ends_is_sampled_by_another(
    bench: Bench, policies, streams: bool
) -> None:
    other = FakeEngine(
        policies.first.directory, signals=bench.router.endpoint, top_j=TOP_J, key=KEY
    )
    engines = EnginePool([await other.start(), bench.url], key=KEY)
    first, _ = engines
    runner = bench.runner(engines, mode="off")
    if streams:
        runner.streamer = StreamingController(VOCABULARY, TOP_J, progress_timeout_s=30.0)
    await first.pause()
    turn = asyncio.create_task(runner.run(asking(5), seed=5))
    async with asyncio.timeout(10):
        while not other._generator.requests:
            await asyncio.sleep(0.01)
    await other.stop()  # ends the turn with "abort", as vLLM does when it is told to end
    result = await turn
    await engines.close()
    assert isinstance(result, TurnResult) and result.kept.length > 0 and result.rejected == []


@pytest.mark.parametrize("streams", [False, True], ids=["tap", "stream"])
async def test_turn_gets_the_newest_weights_though_its_engine_restarted_unseen(
    policies, streams: bool
) -> None:
    """A turn is sampled with the newest weights though nobody saw its engine start again."""
    signals = f"tcp://127.0.0.1:{free_port()}"
    port = free_port()
    fake = FakeEngine(policies.first.directory, port=port, signals=signals, top_j=TOP_J, key=KEY)
    made = await _bound(await fake.start(), signals, fake)
    listening = asyncio.create_task(made.router.run())
    weights = policies.second
    await made.engines.apply_weights(weights.file, 3, weights.checksum, deadline=20.0)
    await fake.stop()
    fake = FakeEngine(policies.first.directory, port=port, signals=signals, top_j=TOP_J, key=KEY)
    await fake.start()
    runner = made.runner(mode="off")
    if streams:
        runner.streamer = StreamingController(VOCABULARY, TOP_J, progress_timeout_s=30.0)
    result = await runner.run(asking(7), seed=7)
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
    async with fake_bench(policies) as bench:
        proxy = Proxy(urlsplit(bench.url).port)
        await proxy.start()
        engines = EnginePool([f"http://127.0.0.1:{proxy.port}", await other.start()], key=KEY)
        first, _ = engines
        runner = bench.runner(engines, mode="off")
        runner.streamer = StreamingController(VOCABULARY, TOP_J, progress_timeout_s=120.0)
        await bench.client.pause()
        turn = asyncio.create_task(runner.run(asking(9), seed=9))
        try:
            await asyncio.sleep(2.5)
            assert await bench.running() == 1 and first in engines.healthy(), "it is alive"
            assert await proxy.cut("silence") >= 1
            async with asyncio.timeout(20):
                result = await turn
        finally:
            await engines.close()
            await other.stop()
    assert isinstance(result, TurnResult) and result.kept.length > 0 and result.rejected == []


async def settled(count: Callable[[], int]) -> None:
    """Wait until `count` has not changed for half a second."""
    last = -1
    while last != count():
        last = count()
        await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    "way", ["both ends", "the controller's end", "the engine's end", "silence", "delay"]
)
async def test_turn_records_the_kept_response_however_the_link_is_cut(
    bench: Bench, policies, way: str
) -> None:
    """The link is cut once the engine has generated some tokens.

    Signals come beside it, of a response whose answer is lost, too.
    """
    tokens = 300
    rows = Counter()
    observe = bench.router.observe

    def observing(frame: SignalFrame) -> list[ForceTokens]:
        rows.update(frame.turn_ids)
        return observe(frame)

    bench.router.observe = observing
    async with Link(bench.url) as link:
        engines = EnginePool([link.url], key=KEY)
        runner = bench.runner(
            engines,
            tokens=tokens,
            mode="budget",
            max_thinking=6,
            min_thinking=1,
            progress_timeout_s=2.0,
        )
        prompt = [*some_prompt("cut", tokens=20), TOKENS.open]
        request = TurnRequest(
            key=EpisodeKey(9, 0), lease_attempt=0, turn_index=0, prompt=pack(prompt, INT32)
        )
        turn = asyncio.create_task(runner.run(request, seed=9))
        async with asyncio.timeout(60):
            while rows.total() < 8:
                await asyncio.sleep(0.001)
        if way in ("silence", "delay"):
            go_on = link.hold()
            if way == "silence":
                await settled(
                    rows.total
                )  # signals do not go over this link: a turn that they come of goes on
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
    async with asyncio.timeout(10):
        while await bench.running():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("streams", [False, True], ids=["tap", "stream"])
async def test_a_turn_whose_row_is_not_a_number_is_sampled_again_and_the_others_are_not(
    policies, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    async with fake_bench(policies) as bench:
        poisoned = poison(
            monkeypatch, lambda request: "t11.0.0.0.0.0." in request.id
        )  # the first try
        runner = bench.runner(progress_timeout_s=20.0, early_stall=0.0)
        if streams:
            runner.streamer = StreamingController(VOCABULARY, TOP_J, progress_timeout_s=20.0)
        results = await asyncio.gather(
            *(runner.run(asking(number), seed=number) for number in (10, 11, 12))
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
            *(runner.run(asking(number), seed=number) for number in (11, 12))
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
        weights = policies.second
        generator = bench.fake._generator
        await bench.engines.apply_weights(weights.file, 3, weights.checksum, deadline=20.0)
        for tensor in generator._model.state_dict().values():
            tensor.fill_(float("nan"))
        monkeypatch.setattr(
            generator, "load", lambda *_: None
        )  # nor do those of the file, for a while
        turn = asyncio.create_task(bench.runner(progress_timeout_s=20.0).run(asking(13), seed=13))
        async with asyncio.timeout(20):
            while bench.engines.healthy():
                await asyncio.sleep(0.01)
        monkeypatch.setattr(bench.engines, "_no_engine_patience_s", -1.0)
        with pytest.raises(
            EngineError, match=r"fit for turns .*computed NaN or infinity .* engine\.dtype"
        ):
            bench.engines.check()
        monkeypatch.undo()
        result = await asyncio.wait_for(turn, 20)
        assert isinstance(result, TurnResult) and {span.version for span in result.kept.spans} == {
            3
        }


async def test_a_busy_engine_is_asked_again_when_it_says_and_is_not_suspect(policies) -> None:
    async with fake_bench(policies) as bench:
        (route,) = [
            route
            for route in bench.fake._runner.app.router.routes()
            if route.resource.canonical == GENERATE
        ]
        answers = route._handler
        asked = []

        async def busy(raw: web.Request) -> web.StreamResponse:
            asked.append((await raw.json())["request_id"])
            if len(asked) <= MAX_RETRIES + 2:
                return web.Response(status=429, headers={"Retry-After": "0"})
            assert bench.engines.healthy()
            return await answers(raw)

        route._handler = busy
        assert isinstance(
            await bench.runner(progress_timeout_s=20.0).run(asking(14), seed=14), TurnResult
        )
        assert len(set(asked)) == len(asked) == MAX_RETRIES + 3  # a name of its own for each try
        asked.clear()
        given_up = await bench.runner(progress_timeout_s=0.05).run(asking(15), seed=15)
        assert isinstance(given_up, TurnFailed) and ": 429" in given_up.detail


def poison(monkeypatch: pytest.MonkeyPatch, chosen: Callable[[Request], bool]) -> set[str]:
    """The model computes NaN for the requests that are `chosen`; their names, once it has."""
    compute = Generator._next_logits
    poisoned = set()

    def computed(self: Generator, request: Request):
        logits = compute(self, request)
        if not chosen(request):
            return logits
        poisoned.add(request.id)
        return logits * float("nan")

    monkeypatch.setattr(Generator, "_next_logits", computed)
    return poisoned


async def test_engine_hears_other_names_for_the_same_turn_from_another_process(
    bench: Bench, monkeypatch
) -> None:
    """It may keep forced tokens and rules by the one, and prefixes by the other, of a run that is
    over.
    """
    heard = []
    generate = EngineClient.generate

    def listening(self, turn_id, prompt, sampling, **how):
        heard.append((turn_id, sampling.cache_salt))
        return generate(self, turn_id, prompt, sampling, **how)

    monkeypatch.setattr(EngineClient, "generate", listening)
    for _ in range(2):
        await bench.runner(mode="off").run(asking(8), seed=8)
    assert [len(set(names)) for names in zip(*heard, strict=True)] == [2, 2]


async def test_a_turn_that_fails_in_every_engine_costs_its_episode_and_no_engine(
    bench: Bench,
) -> None:
    request = asking(6)
    refused = TurnRequest(
        key=request.key, lease_attempt=0, turn_index=0, prompt=pack([VOCABULARY + 5], INT32)
    )
    result = await bench.runner(mode="off").run(refused, seed=6)
    assert isinstance(result, TurnFailed)
    assert isinstance(await bench.runner(mode="off").run(request, seed=6), TurnResult)


@pytest.mark.parametrize("streams", [False, True], ids=["tap", "stream"])
async def test_a_turn_that_is_all_but_certain_to_be_stalled_is_ended_and_sampled_again(
    bench: Bench, streams: bool
) -> None:
    """An eta so large that every turn but the first is stalled from the first look on.

    By itself the response that is ended has about 500 tokens, of either engine: it is not done
    when this process, which may be busy, looks at it.
    """
    runner = bench.runner(tokens=700, eta=1e3, early_stall=0.05, max_resamples=1)
    if streams:
        runner.streamer = StreamingController(VOCABULARY, TOP_J, progress_timeout_s=30.0)
    first, second = [await runner.run(asking(14, turn=turn), seed=14) for turn in (0, 1)]
    assert isinstance(first, TurnResult) and not first.rejected
    assert (
        isinstance(second, TurnResult) and second.kept.stop is not StopReason.EARLY
    )  # nothing follows the last sample
    (rejected,) = second.rejected
    assert [event.reason for event in rejected.events] == ["early"]
    assert rejected.stop is StopReason.EARLY and FIRST_LOOK <= rejected.length < 250
    assert runner.counters.rejected_tokens >= rejected.length
    async with asyncio.timeout(10):
        while await bench.running():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("streams", [False, True], ids=["tap", "stream"])
async def test_an_engine_that_stays_stuck_costs_the_episode_and_says_which_setting(
    bench: Bench, streams: bool
) -> None:
    runner = bench.runner(progress_timeout_s=0.3, max_resamples=1)
    if streams:
        runner.streamer = StreamingController(VOCABULARY, TOP_J, progress_timeout_s=0.3)
    await bench.client.pause()
    try:
        result = await asyncio.wait_for(runner.run(asking(2), seed=2), 60)
    finally:
        await bench.client.resume()
    assert isinstance(result, TurnFailed) and "engine.progress_timeout_s" in result.detail
    async with asyncio.timeout(10):
        while await bench.running():
            await asyncio.sleep(0.05)


async def test_a_turn_that_waits_for_its_place_is_not_stuck_while_others_go_on(
    bench: Bench,
) -> None:
    """Of two turns the engine never begins one, and says so many times something about the
    other.
    """
    settings = ThinkingSettings("paper", 0.4, VOCABULARY, "mean", 7, -1.0, 16, 450)
    for turn in ("goes on", "waits"):
        bench.router.watch(
            turn, WatchedTurn(RuleSpec(settings, 1, 2, []).build(), InterventionMode.OBSERVE)
        )
    waiting = asyncio.create_task(bench.router.await_response("waits", asyncio.Event().wait(), 0.4))
    for position in range(10):
        await asyncio.sleep(0.1)
        bench.router.observe(frame("goes on", position))
        assert not waiting.done()
    with pytest.raises(NoProgressError):
        await waiting


async def test_a_signal_at_a_position_that_no_response_has_is_refused_and_changes_nothing(
    bench: Bench,
) -> None:
    """A rule keeps something for each position before it: for all below 2**31 the controller would
    need minutes and its memory.
    """
    settings = ThinkingSettings("paper", 0.4, VOCABULARY, "mean", 7, -1.0, 16, 450)
    rule = RuleSpec(settings, 1, 2, []).build()
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


async def test_a_canceled_stream_ends_its_turn_in_the_engine(bench: Bench) -> None:
    settings = ThinkingSettings("paper", 0.4, VOCABULARY, "mean", 2, -1.0, 4, 25)
    delegated = RuleSpec(settings, TOKENS.open, TOKENS.close, TOKENS.closing_tokens)
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
    async with asyncio.timeout(10):
        while await bench.running():
            await asyncio.sleep(0.05)


async def test_a_thousand_turns_canceled_at_random_moments_leave_nothing_behind(
    bench: Bench,
) -> None:
    runner = bench.runner()
    rng = random.Random(0)
    under_way: set[asyncio.Task] = set()
    for number in range(1000):
        task = asyncio.create_task(runner.run(asking(number), seed=number))
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
        runner.forget(asking(number).key, 0)
    assert not len(bench.router) and not runner.scores
    async with asyncio.timeout(20):
        while await bench.running():
            await asyncio.sleep(0.05)
    assert isinstance(await runner.run(asking(5000), seed=0), TurnResult)
