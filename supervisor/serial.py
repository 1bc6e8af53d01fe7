"""Run everything in one process and one event loop, for a debugger and for tests.

The engine is that of engine/fake/server.py. The same controller, learner and actors speak the same
protocols over the same sockets; only who runs them differs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import zmq
import zmq.asyncio
from rich.console import Console

from actors.actor import Actor
from config import Job
from controller.controller import build_controller
from controller.shard_worker import build_shard_worker
from engine.fake.server import FakeEngine
from envs.registry import make_environments
from learner.learner import Learner, build_learner
from learner.process import USER_ERRORS, first_error
from learner.warm_start.build import build_policy
from protocol.codec import decode, encode
from protocol.files import WriteError
from protocol.messages import Hello, Welcome
from protocol.prompting import Prompter
from protocol.security import connect, load_keys
from supervisor.interrupts import on_interrupt
from supervisor.job import clean_up, write_settings
from supervisor.process import RunFailed
from supervisor.run import build_progress, receiving
from telemetry.collector import Collector, open_collector
from telemetry.progress import Progress
from telemetry.state import BUILDING, OWN_SOURCE, phase_stats
from telemetry.summary import summarize_run, write_summary

TICK_S = 0.25
"""Seconds between two drawings of the progress."""


async def train_serially(job: Job, console: Console) -> dict[str, Any]:
    """Run the job in this process; returns its summary.

    Raises RunFailed for what the user can mend.
    """
    try:
        return await _train(job, console)
    except USER_ERRORS as error:
        raise RunFailed(str(error)) from error
    except BaseExceptionGroup as group:
        user_errors = group.subgroup(USER_ERRORS)
        if user_errors is None:
            raise
        raise RunFailed(str(first_error(user_errors))) from group


async def _train(job: Job, console: Console) -> dict[str, Any]:
    context = zmq.asyncio.Context()
    collector = open_collector(
        Path(job.run_dir),
        resume=job.resume,
        min_effective_sample_size=job.config.learner.min_effective_sample_size,
    )
    try:
        return await _train_and_summarize(job, context, collector, console)
    except* WriteError as group:
        raise RunFailed(str(first_error(group))) from None
    finally:
        collector.close()
        context.destroy(linger=0)


async def _train_and_summarize(
    job: Job, context: zmq.asyncio.Context, collector: Collector, console: Console
) -> dict[str, Any]:
    interrupted = asyncio.Event()
    with build_progress(job, collector.state, console) as progress:
        await _build_policy(job, collector, progress)
        engines = [_build_engine(job, number) for number in range(len(job.endpoints.engines))]
        async with receiving(job, collector, context):
            await asyncio.gather(*(engine.start() for engine in engines))
            try:
                learner = build_learner(
                    job, context, elapsed_s=collector.state.wall_seconds(time.monotonic())
                )
                with on_interrupt(_build_interrupt_handler(learner, interrupted, progress)):
                    await _run_processes(job, context, progress, learner, collector)
            finally:
                await asyncio.gather(*(engine.stop() for engine in engines))
                clean_up(job)
        progress.tick()  # with what arrived last
    ended = "finished"
    if interrupted.is_set():
        ended = "interrupted"
    if collector.failure is not None:
        ended = str(collector.failure)
    summary = summarize_run(collector.state, time.monotonic(), ended)
    write_summary(Path(job.run_dir), summary)
    if collector.failure is not None:
        raise collector.failure
    return summary


async def _build_policy(job: Job, collector: Collector, progress: Progress) -> None:
    """Make the policy, if need be, in a thread of its own, and show how far it is."""
    loop = asyncio.get_running_loop()

    def report(done: int, total: int) -> None:
        message = phase_stats(OWN_SOURCE, BUILDING, done, total)
        loop.call_soon_threadsafe(collector.handle, message)

    building = asyncio.create_task(asyncio.to_thread(build_policy, job, report))
    while not building.done():
        progress.tick()
        await asyncio.wait([building], timeout=TICK_S)
    await building


def _build_engine(job: Job, number: int) -> FakeEngine:
    endpoints = job.endpoints
    config = job.config
    signals = None
    if config.control.signal != "stream":
        signals = endpoints.signals[endpoints.shard_of(number)]
    port = urlsplit(endpoints.engines[number]).port
    if port is None:
        raise ValueError(f"engine {number} has no port: {endpoints.engines[number]}")
    return FakeEngine(
        job.model_dir,
        port=port,
        signals=signals,
        top_j=config.control.t2po.top_j,
        key=job.engine_key,
        keys=config.security.keys,
        heartbeat_seconds=config.actor.heartbeat_seconds,
    )


def _build_interrupt_handler(
    learner: Learner, interrupted: asyncio.Event, progress: Progress
) -> Callable[[], None]:
    """Return what handles Ctrl-C.

    The first one stops the learner in good order, a second one stops at once.
    """
    task = asyncio.current_task()
    assert task is not None  # only coroutines call this

    def interrupt() -> None:
        if interrupted.is_set():
            task.cancel()
            return
        interrupted.set()
        progress.print(
            "Interrupted: what can be kept is written into a checkpoint. Ctrl-C again stops at "
            "once."
        )
        learner.stop()

    return interrupt


async def _run_processes(
    job: Job,
    context: zmq.asyncio.Context,
    progress: Progress,
    learner: Learner,
    collector: Collector,
) -> None:
    """Run all until the learner reaches its goal, or figures cannot be written.

    A process that fails here fails the run.
    """
    shard_numbers = range(1, job.config.cluster.shards)
    processes = [
        learner.run(),
        build_controller(job, context).run(),
        *(build_shard_worker(job, context, number).run() for number in shard_numbers),
        _run_actors(job, context),
        _tick(progress, learner, collector),
    ]
    tasks = [asyncio.create_task(process) for process in processes]
    write_settings(job)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _run_actors(job: Job, context: zmq.asyncio.Context) -> None:
    connection = context.socket(zmq.DEALER)
    keys = load_keys(job.config.security.keys)
    connect(connection, job.endpoints.actors, keys)
    await connection.send(encode(Hello(host="serial", pid=0)))
    welcome = decode(await connection.recv())
    connection.close()
    assert isinstance(welcome, Welcome)
    environments = make_environments(
        welcome.environment, welcome.environment_settings, welcome.settings_by_set
    )
    prompter = Prompter(welcome.tokenizer_json, welcome.chat)
    async with asyncio.TaskGroup() as group:
        for _ in range(job.config.actor.count):
            actor = Actor(context, job.endpoints.actors, welcome, environments, prompter, keys)
            group.create_task(actor.run(job.config.actor.episodes_per_actor))
    await asyncio.Event().wait()  # the actors may end before the learner does


async def _tick(progress: Progress, learner: Learner, collector: Collector) -> None:
    while True:
        progress.tick()
        if collector.failure is not None:
            learner.stop()
        await asyncio.sleep(TICK_S)
