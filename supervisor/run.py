"""A run: start its processes in order, show progress, end all of them, and leave a summary."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import zmq
import zmq.asyncio
from rich.console import Console

from config import Job, LearnerSection
from config.options import values_of
from engine.launch import EngineNotReady, engine_command, wait_ready
from protocol.codec import FrameReader
from protocol.delivery import Listener
from protocol.lifetime import describe_end
from protocol.messages import Stats
from protocol.security import gatekeeper, load_keys
from protocol.validation import REPORTED, validate_stats
from supervisor.endpoints import free_port
from supervisor.engine_health import kill_dead_engines
from supervisor.interrupts import on_interrupt
from supervisor.job import clean_up, job_file, keep_settings
from supervisor.process import ChildProcess, Restarts, RunFailed, cause_in, start, stop_all
from telemetry.collector import Collector
from telemetry.probes.clocks import LoopLag
from telemetry.probes.waits import OwnWaits
from telemetry.progress import Progress
from telemetry.sinks.trackers import Tracker
from telemetry.state import OWN_SOURCE
from telemetry.summary import format_summary, summarize_run, write_summary

TICK = 0.25
"""Seconds between two looks at the children and two drawings of the progress."""

RESTARTS = 5
RESTARTS_SECONDS = 600.0
"""So often in so many seconds, engines and shards that end are started again; the run ends with the
next one."""

BUILDING = "policy"

LEAVES = {
    "evaluating": "this evaluation is given up, and a checkpoint is written",
    "training": "this update is finished, and a checkpoint is written",
}
"""Phase -> what the learner does yet when the run is interrupted in it.

In all others there is nothing to keep.
"""

LAST_WORDS = 0.3
"""Seconds in which what the processes sent just before they ended arrives."""


async def train(job: Job, console: Console) -> dict:
    """Run the job to its end; returns its summary.

    Raises RunFailed or EngineNotReady when a process, or the disk, failed.

    A run that got as far as one measurement leaves a summary, however it ends.
    """
    run_dir = Path(job.run_dir)
    settings = values_of(job.config)
    tracker = (
        Tracker(job.config.run.tracker, run_dir, settings)
        if job.config.run.tracker != "none"
        else None
    )
    collector = Collector(
        run_dir, resume=job.resume, ess_floor=job.config.learner.ess_floor, tracker=tracker
    )
    ended = "finished"
    try:
        with Progress(collector.state, job.config.run, console) as progress:
            async with receiving(job, collector) as received:
                run = Run(job, collector, progress, received)
                with on_interrupt(run.interrupt):
                    try:
                        await run.until_learner_ends()
                    finally:
                        stop_all(list(reversed(run.children)))
                ended = "interrupted" if run.interrupted else "finished"
    except OSError as error:
        failure = _cannot_be_written(run_dir, error)
        ended = str(failure)
        raise failure from error
    except BaseException as error:
        ended = (
            "interrupted"
            if isinstance(error, asyncio.CancelledError)
            else f"{type(error).__name__}: {error}".splitlines()[0]
        )
        raise
    finally:
        clean_up(job)
        summary = summarize_run(collector.state, time.monotonic(), ended)
        unwritten = _write_down(collector, run_dir, summary)
    if unwritten is not None:
        raise _cannot_be_written(run_dir, unwritten) from unwritten
    console.print(format_summary(summary, job.config.run))
    return summary


def _write_down(collector: Collector, run_dir: Path, summary: dict) -> OSError | None:
    """Close the run's files and leave a summary, if anything was measured.

    Why that cannot be: where the run has failed already, that is what is told, and not this.
    """
    collector.close()
    try:
        if collector.state.updates or collector.state.evaluations:
            write_summary(run_dir, summary)
    except OSError as error:
        return error
    return None


def _cannot_be_written(run_dir: Path, error: OSError) -> RunFailed:
    where = error.filename or run_dir
    return RunFailed(
        f"{where}: {error.strerror} (run.dir)" if error.strerror else str(error) or repr(error)
    )


class Run:
    """The processes of one run."""

    def __init__(
        self, job: Job, collector: Collector, progress: Progress, received: asyncio.Task
    ) -> None:
        self.children: list[ChildProcess] = []
        self._engines: dict[
            int, ChildProcess
        ] = {}  # those started here that are to be started again
        self._shards: dict[int, ChildProcess] = {}  # of the controller, but for the first
        self._restarts = Restarts(RESTARTS, RESTARTS_SECONDS)
        self._needed = [received]  # tasks that never end by themselves
        self._task: asyncio.Task | None = None  # of until_learner_ends
        self.interrupted = False
        self._with_engines = False  # they have answered, and the controller is started
        self._ending = False  # since figures cannot be written
        self._job = job
        self._collector = collector
        self._progress = progress
        self._waits = OwnWaits(time.monotonic)

    async def until_learner_ends(self) -> None:
        """The order matters: the engine needs a policy to load, the controller an engine, the
        actors a controller."""
        self._task = asyncio.current_task()
        await self._build_policy()
        learner = self._start_learner()
        if not await self._engines_ready(learner):
            return  # somebody else has stopped it in its warm start: there is nothing to play for
        self._with_engines = True
        watching = asyncio.create_task(
            kill_dead_engines(self._engines, self._job.endpoints.engines)
        )
        self._needed.append(watching)
        try:
            self._start("controller")
            self._shards = {
                number: self._start_shard(number)
                for number in range(1, self._job.config.controller.shards)
            }
            if self._job.config.actor.count:
                self._start("actors")
            await self._while_all_live(lambda: learner.ended or self._under_way())
            keep_settings(self._job)
            await self._while_all_live(lambda: learner.ended)
        finally:
            watching.cancel()

    def _under_way(self) -> bool:
        """Whether the learner has got its weights out to the engines."""
        return self._collector.state.phase.name in LEAVES

    def _start(self, name: str) -> ChildProcess:
        return self._add(start(name, [name, str(job_file(self._job))], self._log(name)))

    def _start_learner(self) -> ChildProcess:
        """All ranks of the learner; returns rank 0, which ends when the run does."""
        environments = learner_environments(self._job.config.learner)
        names = ["learner", *(f"learner-{rank}" for rank in range(1, len(environments)))]
        lasted_seconds = self._collector.state.wall_seconds(time.monotonic())
        arguments = ["learner", str(job_file(self._job)), f"{lasted_seconds:.3f}"]
        launch = self._job.config.learner.launch
        ranks = [
            self._add(start(name, arguments, self._log(name), env, launch))
            for name, env in zip(names, environments, strict=True)
        ]
        return ranks[0]

    def _add(self, child: ChildProcess) -> ChildProcess:
        self.children.append(child)
        if child.name in REPORTED:
            self._collector.state.waits.hear(child.name, time.monotonic())
        return child

    async def _build_policy(self) -> None:
        if self._job.config.model.name == "tiny" and not Path(self._job.model_dir).exists():
            self._phase(BUILDING)
            builder = self._add(
                start(
                    "policy builder",
                    ["learner.warm_start.build", str(job_file(self._job))],
                    self._log("learner"),
                )
            )
            with self._waits.on(
                "the policy builder, which plays demonstrations (logs/learner.log)"
            ):
                await self._while_all_live(lambda: builder.ended)
            self.children.remove(builder)

    async def _engines_ready(self, learner: ChildProcess) -> bool:
        """Whether they are, or else the learner has ended before.

        Raises EngineNotReady when one cannot be had.
        """
        config = self._job.config
        urls = self._job.endpoints.engines
        own = (
            [self._start_engine(number) for number in range(len(urls))]
            if not config.engine.urls
            else []
        )
        told = (config.engine.start_seconds, self._job.engine_key, self._job.run_id)
        waiting = [asyncio.create_task(wait_ready(url, *told)) for url in urls]
        try:
            with self._waits.on(lambda: f"an answer of {_not_ready(urls, waiting)}"):
                await self._while_all_live(
                    lambda: learner.ended or all(task.done() for task in waiting)
                )
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
        if learner.ended:
            return False
        for number, task in enumerate(waiting):
            try:
                await task
            except EngineNotReady as error:
                raise EngineNotReady(_with_log(error, own[number]) if own else str(error)) from None
        if (
            config.engine.weights == "file"
        ):  # over NCCL, one that is started again has no way to get the weights
            self._engines = dict(enumerate(own))
        return True

    def _start_engine(self, number: int) -> ChildProcess:
        command = engine_command(self._job, number)
        name = f"engine-{number}" if number else "engine"
        launch = self._launch(self._job.endpoints.shard_of(number))
        return self._add(
            start(name, command.arguments, self._log(name), command.environment, launch)
        )

    def _start_shard(self, number: int) -> ChildProcess:
        name = f"controller-{number}"
        return self._add(
            start(
                name,
                ["controller", str(job_file(self._job)), str(number)],
                self._log(name),
                launch=self._launch(number),
            )
        )

    def _launch(self, shard: int) -> list[str]:
        """What starts something on the machine of a shard; nothing if that is this one."""
        return (
            [word.replace("{shard}", str(shard)) for word in self._job.config.controller.launch]
            if shard
            else []
        )

    def _restart(self) -> None:
        """Engines and shards that have ended are started again; the controller gives them the
        newest weights."""
        for children, begin in (
            (self._engines, self._start_engine),
            (self._shards, self._start_shard),
        ):
            for number, child in children.items():
                if child.ended and self._restarts.allowed(time.monotonic()):
                    self._progress.print(
                        f"The {child.name} {describe_end(child.process.returncode)}: started again."
                    )
                    child.signal(signal.SIGKILL)  # what is left of it
                    self.children.remove(child)
                    children[number] = begin(number)

    async def _while_all_live(self, over: Callable[[], bool]) -> None:
        """Until `over()`; raises ChildFailed when a process has failed, or ended while it is still
        needed."""
        while not over():
            self._restart()
            for child in self.children:
                child.check()
            for task in self._needed:
                if task.done():
                    task.result()  # what broke in the collector ends the run
            self._end_without_figures()
            self._collector.state.waits.take(OWN_SOURCE, self._waits.seconds(), time.monotonic())
            self._collector.note_status()
            self._progress.tick()
            await asyncio.sleep(TICK)
        for child in self.children:
            child.check()
        if self._collector.failure is not None:
            raise self._collector.failure

    def _end_without_figures(self) -> None:
        """End a run whose figures cannot be written (a full disk): in good order where there is
        something to keep, or at once."""
        failure = self._collector.failure
        if failure is None or self._ending:
            return
        phase = self._collector.state.phase.name
        learners = self._live_learners()
        if not learners or phase not in LEAVES:
            raise failure
        self._ending = True
        self._progress.print(f"{failure}: {LEAVES[phase]}.")
        for child in learners:
            child.signal(signal.SIGINT)

    def _live_learners(self) -> list[ChildProcess]:
        return [child for child in self.children if child.name == "learner" and not child.ended]

    def interrupt(self) -> None:
        """Ctrl-C.

        The first one lets the learner finish its update and write a checkpoint; a second one stops
        at once, as does the first one where there is nothing to keep.
        """
        learners = self._live_learners()
        phase = self._collector.state.phase.name
        first = not self.interrupted
        self.interrupted = True
        if first and learners and self._with_engines and phase in LEAVES:
            self._progress.print(f"Interrupted: {LEAVES[phase]}. Ctrl-C again stops at once.")
            for child in learners:
                child.signal(signal.SIGINT)
            return
        self._progress.print(
            "Interrupted: stopping at once."
            if not first
            else f"Interrupted ({phase}): nothing to keep yet, stopping."
        )
        if self._task is not None:
            self._task.cancel()

    def _phase(self, name: str) -> None:
        self._collector.handle(Stats(source="supervisor", event="phase", values={"phase": name}))

    def _log(self, name: str) -> Path:
        return Path(self._job.run_dir) / "logs" / f"{name}.log"


def _not_ready(urls: Sequence[str], waiting: Sequence[asyncio.Task]) -> str:
    """The addresses of engines that do not answer yet."""
    return ", ".join(
        f"the engine at {url}" for url, task in zip(urls, waiting, strict=True) if not task.done()
    )


def _with_log(error: EngineNotReady, engine: ChildProcess) -> str:
    cause = cause_in(engine.log, engine.log_begin)
    return f"{error}{': ' if cause else ''}{cause}\nits log: {engine.log}"


def learner_environments(settings: LearnerSection) -> list[dict[str, str]]:
    """What each rank of the learner is told, in the variables of torchrun, which may start them
    elsewhere; nothing if there is one."""
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(settings.devices)} if settings.devices else {}
    if settings.ranks == 1:
        return [devices]
    together = {
        "WORLD_SIZE": str(settings.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        {**devices, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(settings.ranks)
    ]


@contextlib.asynccontextmanager
async def receiving(
    job: Job, collector: Collector, context: zmq.asyncio.Context | None = None
) -> AsyncIterator[asyncio.Task]:
    """While inside, what processes report goes to the collector; yields the task that does it."""
    own = context or zmq.asyncio.Context()
    keys = load_keys(job.config.security.keys)
    reader = FrameReader()
    listener = Listener(
        own,
        job.endpoints.stats,
        [name.encode() for name in REPORTED],
        keys,
        job.config.actor.heartbeat_seconds,
        reader,
    )
    lag = LoopLag()
    tasks = [
        asyncio.create_task(_receive(listener, reader, collector, lag)),
        asyncio.create_task(lag.run()),
    ]
    try:
        async with gatekeeper(own, keys):
            yield tasks[0]
            await asyncio.wait(tasks, timeout=LAST_WORDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        listener.close(0.0)
        if context is None:
            own.term()


async def _receive(
    listener: Listener, reader: FrameReader, collector: Collector, lag: LoopLag
) -> None:
    while True:
        peer, message, _ = await listener.hear()
        flaw = (
            validate_stats(message)
            if isinstance(message, Stats)
            else f"{type(message).__name__} that the supervisor does not read"
        )
        if flaw:
            reader.refuse(peer, flaw)
            continue
        if message.event == "update":
            collector.handle(
                Stats(source="supervisor", event="gauge", values={"loop_lag": lag.read().worst})
            )
        collector.handle(message)
