"""The whole run in one process and one event loop, against the engine of engine/fake/server.py: for
a debugger and for tests.

The same controller, learner and actors speak the same protocols over the same sockets; only who
runs them differs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import zmq
import zmq.asyncio
from rich.console import Console

from actors.actor import Actor
from config import ConfigError, Job
from controller.controller import Controller
from controller.shard_worker import ShardWorker
from engine.fake.server import FakeEngine
from envs.registry import make_environment
from learner.data.groups import NothingPlayable
from learner.learner import Learner
from learner.warm_start.build import build_policy
from learner.warm_start.demonstrations import NoDemonstrations
from protocol.codec import decode, encode
from protocol.files import Unwritable
from protocol.messages import Hello, Welcome
from protocol.prompting import Prompter
from protocol.security import connect, load_keys
from supervisor.interrupts import on_interrupt
from supervisor.job import clean_up, keep_settings
from supervisor.process import RunFailed
from supervisor.run import receiving
from telemetry.collector import Collector
from telemetry.progress import Progress
from telemetry.summary import format_summary, summarize_run, write_summary

TOLD_IN_A_SENTENCE = (NoDemonstrations, NothingPlayable, Unwritable, ConfigError)
"""What the user can mend: it needs no traceback."""


async def train_serially(job: Job, console: Console) -> dict:
    """Run the job in this process; returns its summary.

    Raises RunFailed for what the user can mend.
    """
    try:
        return await _train(job, console)
    except TOLD_IN_A_SENTENCE as error:
        raise RunFailed(str(error)) from error
    except BaseExceptionGroup as errors:
        told = errors.subgroup(TOLD_IN_A_SENTENCE)
        if told is None:
            raise
        raise RunFailed(str(_first_of(told))) from errors


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _train(job: Job, console: Console) -> dict:
    context = zmq.asyncio.Context()
    collector = Collector(
        Path(job.run_dir), resume=job.resume, ess_floor=job.config.learner.ess_floor
    )
    try:
        return await _train_serially(job, context, collector, console)
    except* Unwritable as errors:
        raise RunFailed(str(_first(errors))) from None
    finally:
        collector.close()
        context.destroy(linger=0)


async def _train_serially(
    job: Job, context: zmq.asyncio.Context, collector: Collector, console: Console
) -> dict:
    build_policy(job)
    engines = [_engine(job, number) for number in range(len(job.endpoints.engines))]
    interrupted = asyncio.Event()
    with Progress(collector.state, job.config.run, console) as progress:
        async with receiving(job, collector, context):
            await asyncio.gather(*(engine.start() for engine in engines))
            try:
                learner = Learner(
                    job, context, lasted_seconds=collector.state.wall_seconds(time.monotonic())
                )
                with on_interrupt(_stopping(learner, interrupted, progress)):
                    await _play(job, context, progress, learner, collector)
            finally:
                await asyncio.gather(*(engine.stop() for engine in engines))
                clean_up(job)
    ended = "interrupted" if interrupted.is_set() else "finished"
    if collector.failure is not None:
        ended = str(collector.failure)
    summary = summarize_run(collector.state, time.monotonic(), ended)
    write_summary(Path(job.run_dir), summary)
    if collector.failure is not None:
        raise collector.failure
    console.print(format_summary(summary, job.config.run))
    return summary


def _first(error: BaseException) -> BaseException:
    """The first exception of a group, however deep."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _engine(job: Job, number: int) -> FakeEngine:
    endpoints = job.endpoints
    config = job.config
    signals = (
        None if config.control.signal == "stream" else endpoints.signals[endpoints.shard_of(number)]
    )
    port = urlsplit(endpoints.engines[number]).port
    return FakeEngine(
        job.model_dir,
        port=port,
        signals=signals,
        top_j=config.control.top_j,
        key=job.engine_key,
        keys=config.security.keys,
        heartbeat_seconds=config.actor.heartbeat_seconds,
    )


def _stopping(
    learner: Learner, interrupted: asyncio.Event, progress: Progress
) -> Callable[[], None]:
    """What Ctrl-C does: the first one stops the learner in good order, a second one stops at
    once."""
    task = asyncio.current_task()

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


async def _play(
    job: Job,
    context: zmq.asyncio.Context,
    progress: Progress,
    learns: Learner,
    collector: Collector,
) -> None:
    """Until the learner has reached its goal, or the figures cannot be written; a process that
    fails here fails the run."""
    learner = asyncio.create_task(learns.run())
    controllers = [
        Controller(job, context),
        *(ShardWorker(job, context, number) for number in range(1, job.config.controller.shards)),
    ]
    serving = [asyncio.create_task(controller.run()) for controller in controllers]
    actors = asyncio.create_task(_act(job, context))
    ticks = asyncio.create_task(_tick(progress, learns, collector))
    keep_settings(job)
    try:
        done, _ = await asyncio.wait(
            {learner, *serving, actors, ticks}, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()
    finally:
        for task in (learner, *serving, actors, ticks):
            task.cancel()
        await asyncio.wait({learner, *serving, actors, ticks})


async def _act(job: Job, context: zmq.asyncio.Context) -> None:
    connection = context.socket(zmq.DEALER)
    keys = load_keys(job.config.security.keys)
    connect(connection, job.endpoints.actors, keys)
    await connection.send(encode(Hello(host="serial", pid=0)))
    welcome = decode(await connection.recv())
    connection.close()
    assert isinstance(welcome, Welcome)
    environment = make_environment(welcome.environment, **welcome.environment_settings)
    prompter = Prompter(welcome.tokenizer_json, welcome.chat_template)
    async with asyncio.TaskGroup() as group:
        for _ in range(job.config.actor.count):
            actor = Actor(context, job.endpoints.actors, welcome, environment, prompter, keys)
            group.create_task(actor.run(job.config.actor.episodes))
    await asyncio.Event().wait()  # the actors may end before the learner does


async def _tick(progress: Progress, learns: Learner, collector: Collector) -> None:
    while True:
        progress.tick()
        if collector.failure is not None:
            learns.stop()
        await asyncio.sleep(0.25)
