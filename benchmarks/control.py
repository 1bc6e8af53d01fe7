"""Measure what watching and cutting costs: tokens a second of one engine.

It gets the same requests, seen and steered in every way we have.

`python -m benchmarks.control [--quick] [--model DIR] [--streams 1,16,64] [--repeats N] [--json
FILE]` (nine minutes for the tiny policy, on an idle machine)

One vLLM engine, started as a run starts it; the conditions take turns, in another order each time,
and the median of the repeats counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import zmq
import zmq.asyncio
from rich.console import Console
from rich.table import Table

from config import Job
from config.resolve import resolve
from controller.rules.thinking import RuleSpec, ThinkingRule, ThinkingSettings, ThinkTags
from controller.signals import InterventionMode, SignalRouter, WatchedTurn
from controller.think_tokens import ThinkTokens
from engine.client import GENERATE, EngineClient, Sampling
from engine.connection import new_session
from engine.launch import engine_command, wait_ready
from learner.warm_start.build import build_policy
from protocol.arrays import FLOAT32, INT32, pack
from protocol.codec import encode
from protocol.lifetime import die_with
from protocol.messages import ForceTokens, SignalFrame
from protocol.prompting import read_vocabulary
from supervisor.endpoints import choose_endpoints
from supervisor.process import spawn, stop_all

PROMPT = 91
RESPONSE = 64
"""Tokens."""
CUT_EVERY = 20
"""One turn in so many is cut: 5 %."""
CUT_AFTER = 8
"""Tokens of thinking."""
TOKENS = ThinkTokens(ThinkTags(begins_inside=True), closing_tokens=[5, 6, 7], end=[], vocabulary=0)


@dataclass
class Bench:
    """The engine, and the controller's end of its signals."""

    url: str
    client: EngineClient
    session: aiohttp.ClientSession  # with connections as the client's, so that they cost the same
    router: SignalRouter
    vocabulary: int
    lags: list[int] = field(
        default_factory=list
    )  # tokens between a decision of the controller and the first forced one
    number: int = 0

    def turn(self, prompt: int = PROMPT) -> tuple[str, list[int], int]:
        """(Name, prompt of so many tokens, number) of a new turn."""
        self.number += 1
        rng = random.Random(self.number)
        return (
            f"b{self.number}",
            [rng.randrange(10, self.vocabulary) for _ in range(prompt)],
            self.number,
        )

    def rule(self, cut: bool) -> RuleSpec:
        """Build the rule: thinking from the first token on, cut at a budget, or never.

        No token comes before the thinking.
        """
        settings = ThinkingSettings(
            "paper", 0.4, self.vocabulary, "mean", 7, None, 0, CUT_AFTER if cut else 10**6
        )
        return RuleSpec(settings, TOKENS.tags, TOKENS.closing_tokens)


Condition = Callable[[Bench], Awaitable[int]]
"""One turn; its tokens."""


async def plain(bench: Bench) -> int:
    """As anybody would ask vLLM."""
    name, prompt, _ = bench.turn()
    body = {
        "request_id": name,
        "token_ids": prompt,
        "sampling_params": {"max_tokens": RESPONSE, "ignore_eos": True, "detokenize": False},
    }
    async with bench.session.post(bench.url + GENERATE, json=body) as response:
        return len(json.loads(await response.read())["choices"][0]["token_ids"])


def tapped(
    acts: str | None, rate: bool, prompt_tokens: int = PROMPT, response: int = RESPONSE
) -> Condition:
    """Make a condition in which turns are watched, and some of them cut.

    `acts`: None for a turn that nobody watches, else an InterventionMode; `rate`: some of the turns
    are cut.
    """

    async def condition(bench: Bench) -> int:
        name, prompt, number = bench.turn(prompt_tokens)
        delegated = bench.rule(rate and number % CUT_EVERY == 0)
        rule = delegated.build()
        if acts:
            bench.router.watch(name, WatchedTurn(rule, InterventionMode(acts)))
        sampling = Sampling(max_tokens=response, cache_salt=name)
        rule_there = delegated if acts == "engine" else None
        generation = await bench.client.generate(
            name, prompt, sampling, watched=bool(acts), rule=rule_there
        )
        if acts:
            await bench.router.finish(name, len(generation.tokens), 1.0)
            _note_lag(bench, rule, acts)
        return len(generation.tokens)

    return condition


def _note_lag(bench: Bench, rule: ThinkingRule, acts: str) -> None:
    if acts == "steer" and rule.intervention is not None and True in rule.forced:
        bench.lags.append(rule.forced.index(True) - rule.intervention.position)


def streamed(top_k: int) -> Condition:
    """Server-sent events with so many log-probs a token."""

    async def condition(bench: Bench) -> int:
        name, prompt, _ = bench.turn()
        tokens = 0
        async for chunk in bench.client.stream(
            name, prompt, Sampling(max_tokens=RESPONSE, cache_salt=name), log_probs=top_k
        ):
            tokens += len(chunk.tokens)
        return tokens

    return condition


CONDITIONS: dict[str, tuple[Condition, str]] = {
    "plain": (plain, "plain"),
    "log-prob of the sampled token": (tapped(None, False), "plain"),
    "tap, watching": (tapped("observe", False), "log-prob of the sampled token"),
    "tap, 5 % cut by the controller": (tapped("steer", True), "log-prob of the sampled token"),
    "tap, 5 % cut in the engine": (tapped("engine", True), "log-prob of the sampled token"),
    "stream, top 1": (streamed(1), "plain"),
    "stream, top 5": (streamed(5), "plain"),
    "stream, top 20": (streamed(20), "plain"),
}
"""Name -> the turn, and the condition that asks for the same without being watched."""


async def measure(
    bench: Bench, streams: int, seconds: float, repeats: int, console: Console
) -> dict[str, float]:
    """Median tokens a second of each condition."""
    speeds: dict[str, list[float]] = {name: [] for name in CONDITIONS}
    for condition, _ in CONDITIONS.values():
        await speed(
            bench, condition, streams, seconds / 4
        )  # kernels for new row counts, connections
    for repeat in range(repeats):
        console.print(f"{streams} streams, round {repeat + 1} of {repeats}", highlight=False)
        for name in random.Random(repeat).sample(list(CONDITIONS), len(CONDITIONS)):
            speeds[name].append(await speed(bench, CONDITIONS[name][0], streams, seconds))
    return {name: statistics.median(values) for name, values in speeds.items()}


async def speed(bench: Bench, condition: Condition, streams: int, seconds: float) -> float:
    """Tokens a second of `streams` clients that ask again and again, until `seconds` are over."""
    started = time.perf_counter()

    async def client() -> int:
        tokens = 0
        while time.perf_counter() - started < seconds:
            tokens += await condition(bench)
        return tokens

    tokens = sum(await asyncio.gather(*(client() for _ in range(streams))))
    return tokens / (time.perf_counter() - started)


def router_microseconds(rows: int = 64, steps: int = 500) -> float:
    """Measure what a token's signal costs in the controller, in microseconds.

    Decoding of the frame is included; the rule is that of the default job.
    """
    router = SignalRouter(
        zmq.asyncio.Context.instance(), "inproc://alone", TOKENS, max_model_len=1024
    )
    settings = ThinkingSettings("paper", 0.4, 1024, "mean", 3, 1e-9, 4, 450)
    for row in range(rows):
        router.watch(
            str(row),
            WatchedTurn(
                ThinkingRule(settings, ThinkTags(begins_inside=True)), InterventionMode.STEER
            ),
        )
    rng = np.random.default_rng(0)
    frames = [_frame(step, rows, rng) for step in range(steps)]
    started = time.process_time()
    for frame in frames:
        router.observe(frame)
    seconds = time.process_time() - started
    router.close()
    return seconds / (rows * steps) * 1e6


def _frame(step: int, rows: int, rng: np.random.Generator) -> SignalFrame:
    column = lambda: pack(rng.random(rows, np.float32), FLOAT32)  # noqa: E731
    return SignalFrame(
        step=step,
        turn_ids=[str(row) for row in range(rows)],
        position=pack(np.full(rows, step), INT32),
        entropy=column(),
        confidence=column(),
        top_log_prob=column(),
        forced=pack(np.full(rows, -1), INT32),
        previous=pack(np.full(rows, 9), INT32),
    )


async def frame_microseconds(rows: int, engines: int = 30, count: int = 3000) -> float:
    """Measure what a frame with the signals of `rows` turns costs, in microseconds.

    The controller always has one waiting; the time is from receiving it to the rules' decisions.
    `engines` send, from a process of their own.
    """
    router = SignalRouter(
        zmq.asyncio.Context.instance(), "tcp://127.0.0.1:*", TOKENS, max_model_len=count
    )
    settings = ThinkingSettings("paper", 0.4, 1024, "mean", 3, 1e-9, 4, 450)
    for row in range(rows):
        router.watch(
            str(row),
            WatchedTurn(
                ThinkingRule(settings, ThinkTags(begins_inside=True)), InterventionMode.STEER
            ),
        )
    marks: list[float] = []
    observe = router.observe

    def note_and_observe(frame: SignalFrame) -> list[ForceTokens]:
        marks.append(time.thread_time())
        return observe(frame)

    router.observe = note_and_observe
    sender = multiprocessing.get_context("spawn").Process(
        target=_send_frames, args=(router.endpoint, engines, rows, count)
    )
    sender.start()
    running = asyncio.create_task(router.run())
    while sender.is_alive():
        await asyncio.sleep(0.05)
    running.cancel()
    router.close()
    begun = len(marks) // 10
    return 1e6 * (marks[-1] - marks[begun]) / (len(marks) - 1 - begun)


def _send_frames(endpoint: str, engines: int, rows: int, count: int) -> None:
    die_with(os.getppid())
    rng = np.random.default_rng(0)
    frames = [encode(_frame(step, rows, rng)) for step in range(count)]
    context = zmq.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(engines)]
    for socket in sockets:
        socket.connect(endpoint)
    for number, frame in enumerate(frames):
        sockets[number % engines].send(frame)
    context.destroy(linger=10_000)  # until all have arrived


@contextlib.asynccontextmanager
async def engine_of(model: str, streams: int, console: Console) -> AsyncIterator[Bench]:
    """Start an engine that computes so many turns at once, as a run starts it.

    `model`: as `--model` of a run, or empty.
    """
    with tempfile.TemporaryDirectory() as directory:
        overrides = {"engine.max_sequences": str(streams), "run.dir": directory} | (
            {"model": model} if model else {}
        )
        config = resolve(None, overrides)
        job = Job(
            config=config,
            endpoints=choose_endpoints(config),
            run_dir=directory,
            model_dir=model or f"{directory}/policy",
            weights_dir=directory,
        )
        build_policy(job)
        command = engine_command(job)
        engine = spawn(
            "engine", command.arguments, Path(directory) / "engine.log", command.environment
        )
        client = EngineClient(job.endpoints.engines[0])
        session = new_session({}, reuses=True)
        router = SignalRouter(
            zmq.asyncio.Context.instance(),
            job.endpoints.signals[0],
            TOKENS,
            config.engine.max_model_len,
        )
        running = asyncio.create_task(router.run())
        try:
            console.print("starting the engine, half a minute", highlight=False)
            await wait_ready(job.endpoints.engines[0], 180.0)
            vocabulary = read_vocabulary(Path(job.model_dir))
            yield Bench(job.endpoints.engines[0], client, session, router, vocabulary)
        finally:
            running.cancel()
            await client.close()
            await session.close()
            router.close()
            stop_all([engine])


async def main_async(options: argparse.Namespace, console: Console) -> dict[str, float]:
    streams = [int(n) for n in options.streams.split(",")]
    async with engine_of(options.model, max(streams), console) as bench:
        return await _report(bench, streams, options, console)


async def _report(
    bench: Bench, streams: list[int], options: argparse.Namespace, console: Console
) -> dict[str, float]:
    results: dict[str, float] = {}
    table = Table(
        "",
        *(f"{n} streams" for n in streams),
        "of the same, unwatched",
        title="tokens/s (of plain)",
    )
    measured = {}
    for n in streams:
        measured[n] = await measure(
            bench,
            n,
            1.0 if options.quick else 3.0,
            options.repeats or (3 if options.quick else 5),
            console,
        )
        console.print(
            ", ".join(f"{name} {speed:,.0f}" for name, speed in measured[n].items()) + " tokens/s",
            highlight=False,
        )
    for name, (_, base) in CONDITIONS.items():
        cells = [
            f"{measured[n][name]:,.0f} ({measured[n][name] / measured[n]['plain']:.0%})"
            for n in streams
        ]
        ratios = ", ".join(f"{measured[n][name] / measured[n][base]:.2f}" for n in streams)
        table.add_row(name, *cells, ratios)
        results |= {f"{name} @{n}": measured[n][name] for n in streams}
    console.print(table)
    last = 64 if 64 in streams else streams[-1]
    results["tap_ratio"] = (
        measured[last]["tap, watching"] / measured[last]["log-prob of the sampled token"]
    )
    results["lag_p99"] = float(np.percentile(bench.lags, 99)) if bench.lags else float("nan")
    results["controller_us_per_token"] = router_microseconds()
    results |= {f"frame_us @{rows}": await frame_microseconds(rows) for rows in (1, 64)}
    results["signal_tokens_per_second"] = 64e6 / results["frame_us @64"]
    said = (
        f"tap_ratio at {last} streams {results['tap_ratio']:.3f}",
        f"steps from decision to forced token: 99th percentile {results['lag_p99']:g} of "
        f"{len(bench.lags)} cuts",
        f"controller {results['controller_us_per_token']:.1f} us a token",
        f"a frame of 1 turn {results['frame_us @1']:.0f} us, of 64 {results['frame_us @64']:.0f} "
        "us: "
        f"{results['signal_tokens_per_second']:,.0f} signal tokens/s through one controller",
    )
    console.print("; ".join(said), highlight=False)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.control", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="under a minute, at 16 streams")
    parser.add_argument("--streams", default="", help="turns at once, such as 1,16,64,256")
    parser.add_argument(
        "--repeats",
        type=int,
        default=0,
        help="rounds of all conditions (default 5, with --quick 3)",
    )
    parser.add_argument(
        "--model",
        default="",
        help="a Hugging Face directory (default: the tiny policy, random weights)",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    options.streams = options.streams or ("16" if options.quick else "1,16,64,256")
    results = asyncio.run(main_async(options, Console()))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
