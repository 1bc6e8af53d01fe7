"""A run: start its processes in order, show progress, end all of them, and leave a summary."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from rich.console import Console

from config import Config, Job
from config.options import values_of
from engine.launch import EngineCommand, EngineNotReady, engine_command, wait_ready
from protocol.codec import FrameReader
from protocol.delivery import DeliveryServer
from protocol.lifetime import describe_end
from protocol.messages import Stats
from protocol.security import admit_key_holders, load_keys
from protocol.validation import REPORTED, validate_stats
from supervisor.cluster.plan import rank_machines
from supervisor.endpoints import LOOPBACK, free_port
from supervisor.engine_health import kill_dead_engines
from supervisor.interrupts import on_interrupt
from supervisor.job import clean_up, job_file, write_settings
from supervisor.on_devices import on_devices
from supervisor.process import ChildProcess, RestartLimit, RunFailed, error_in, spawn, stop_all
from telemetry.collector import Collector, open_collector
from telemetry.probes.clocks import LoopLag
from telemetry.probes.waits import OwnWaits
from telemetry.progress import Progress
from telemetry.sinks.trackers import Tracker
from telemetry.state import BUILDING, OWN_SOURCE, RunState, phase_stats
from telemetry.summary import summarize_run, write_summary

TICK_S = 0.25
"""Seconds between two checks of the children, and two drawings of the progress."""

MAX_RESTARTS = 5
RESTART_WINDOW_S = 600.0
"""The run ends with the process that would be restarted once more within this time."""

PHASES_WITH_WEIGHTS = frozenset({"evaluating", "training", "ending"})
"""Phases of the learner in which the engines have got weights from it."""

INTERRUPT_PROMISES = {
    "evaluating": "this evaluation is given up, and a checkpoint is written",
    "training": "this update is finished, and a checkpoint is written",
    "ending": "the last checkpoint is written",
}
"""Phase -> how the learner ends when the run is interrupted in it.

In all others there is nothing to keep.
"""

DRAIN_S = 0.3
"""Seconds in which what the processes sent just before they ended arrives."""


async def train(job: Job, console: Console) -> dict[str, Any]:
    """Run the job to its end; returns its summary.

    Raises RunFailed or EngineNotReady when a process, or the disk, failed. A run that got as far as
    one measurement leaves a summary, however it ends.
    """
    run_dir = Path(job.run_dir)
    collector = _build_collector(job)
    ended = "finished"
    try:
        with build_progress(job, collector.state, console) as progress:
            async with receiving(job, collector) as receiver:
                run = Run(job, collector, progress, receiver)
                with on_interrupt(run.interrupt):
                    try:
                        await run.until_learner_ends()
                    finally:
                        stop_all(list(reversed(run.children)))
                if run.interrupted:
                    ended = "interrupted"
            progress.tick()  # with what arrived last
    except OSError as error:
        failure = _disk_failure(run_dir, error)
        ended = str(failure)
        raise failure from error
    except asyncio.CancelledError:
        ended = "interrupted"
        raise
    except BaseException as error:
        ended = f"{type(error).__name__}: {error}".splitlines()[0]
        raise
    finally:
        clean_up(job)
        summary = summarize_run(collector.state, time.monotonic(), ended)
        write_error = _write_results(collector, run_dir, summary)
    if write_error is not None:
        raise _disk_failure(run_dir, write_error) from write_error
    return summary


def build_progress(job: Job, state: RunState, console: Console) -> Progress:
    """Choose what shows the run in the terminal."""
    learner = job.config.learner
    return Progress(
        state,
        job.config.run,
        console,
        batch_episodes=learner.groups_per_update * learner.group_size,
    )


def _build_collector(job: Job) -> Collector:
    """The run's collector of measurements, which sends them to a tracker if one is set."""
    run_dir = Path(job.run_dir)
    tracker = None
    if job.config.run.tracker != "none":
        tracker = Tracker(job.config.run.tracker, run_dir, values_of(job.config))
    return open_collector(
        run_dir,
        resume=job.resume,
        min_effective_sample_size=job.config.learner.min_effective_sample_size,
        tracker=tracker,
        settings=values_of(job.config),
    )


def _write_results(collector: Collector, run_dir: Path, summary: dict) -> OSError | None:
    """Close the run's files and leave a summary, if anything was measured.

    Returns the error of a disk that takes none, so that it hides no earlier failure of the run.
    """
    collector.close()
    try:
        if collector.state.updates or collector.state.evaluations:
            write_summary(run_dir, summary)
    except OSError as error:
        return error
    return None


def _disk_failure(run_dir: Path, error: OSError) -> RunFailed:
    if error.strerror:
        return RunFailed(f"{error.filename or run_dir}: {error.strerror} (run.dir)")
    return RunFailed(str(error) or repr(error))


class Run:
    """The processes of one run."""

    def __init__(
        self, job: Job, collector: Collector, progress: Progress, receiver: asyncio.Task
    ) -> None:
        self.children: list[ChildProcess] = []
        self.interrupted = False
        # Engines started here that are restarted when they end.
        self._engines: dict[int, ChildProcess] = {}
        # Shards of the controller, but for the first.
        self._shards: dict[int, ChildProcess] = {}
        self._restart_limit = RestartLimit(MAX_RESTARTS, RESTART_WINDOW_S)
        # Tasks that never end by themselves.
        self._endless_tasks = [receiver]
        # The task of until_learner_ends.
        self._task: asyncio.Task | None = None
        # Whether the engines have answered, and the controller is started.
        self._engines_answered = False
        # Whether the run ends since its figures cannot be written.
        self._ending_without_figures = False
        self._job = job
        self._collector = collector
        self._progress = progress
        self._waits = OwnWaits(time.monotonic)

    async def until_learner_ends(self) -> None:
        """Start all processes, and wait for the learner's end.

        The order matters: the engine needs a policy to load, the controller an engine, the actors a
        controller.
        """
        self._task = asyncio.current_task()
        await self._build_policy()
        learner = self._start_learner()
        if self._job.devices.sleeps and self._job.config.warm_start.is_wanted:
            # What the warm start takes of a GPU that they share, engines cannot have meanwhile.
            await self._supervise_until(lambda: learner.ended or self._is_under_way())
        if not await self._start_engines(learner):
            # The learner was stopped in its warm start, by somebody else: nothing is to be played.
            return
        self._engines_answered = True
        health_task = asyncio.create_task(
            kill_dead_engines(self._engines, self._job.endpoints.engines)
        )
        self._endless_tasks.append(health_task)
        try:
            self._start_module("controller")
            for number in range(1, self._job.config.cluster.shards):
                self._shards[number] = self._start_shard(number)
            if self._job.config.actor.count:
                self._start_module("actors")
            await self._supervise_until(lambda: learner.ended or self._is_under_way())
            write_settings(self._job)
            await self._supervise_until(lambda: learner.ended)
        finally:
            health_task.cancel()

    def _is_under_way(self) -> bool:
        """True once the learner has sent its first weights to the engines."""
        return self._collector.state.phase.name in PHASES_WITH_WEIGHTS

    def _start_module(self, name: str) -> ChildProcess:
        return self._add(spawn(name, [name, str(job_file(self._job))], self._log(name)))

    def _start_learner(self) -> ChildProcess:
        """Start all ranks of the learner; returns rank 0, which ends when the run does."""
        elapsed_s = self._collector.state.wall_seconds(time.monotonic())
        config = self._job.config
        machines = rank_machines(config)
        ranks = []
        for rank, environment in enumerate(learner_environments(config)):
            machine = str(machines[rank])
            launch = [word.replace("{machine}", machine) for word in config.cluster.learner_launch]
            arguments = learner_arguments(self._job, elapsed_s, rank)
            name = _numbered_name("learner", rank)
            child = spawn(name, arguments, self._log(name), environment, launch)
            ranks.append(self._add(child))
        return ranks[0]

    def _add(self, child: ChildProcess) -> ChildProcess:
        self.children.append(child)
        if child.name in REPORTED:
            self._collector.state.waits.hear(child.name, time.monotonic())
        return child

    async def _build_policy(self) -> None:
        if self._job.config.model.name == "tiny" and not Path(self._job.model_dir).exists():
            self._phase(BUILDING)
            arguments = ["learner.warm_start.build", str(job_file(self._job))]
            builder = self._add(spawn("policy builder", arguments, self._log("learner")))
            with self._waits.on(
                "the policy builder, which plays demonstrations (logs/learner.log)"
            ):
                await self._supervise_until(lambda: builder.ended)
            self.children.remove(builder)

    async def _start_engines(self, learner: ChildProcess) -> bool:
        """Start the engines, unless others are given, and wait until all answer.

        False when the learner has ended before that. Raises EngineNotReady for an engine that does
        not answer.
        """
        config = self._job.config
        urls = self._job.endpoints.engines
        children = []
        if not config.engine.urls:
            children = [self._start_engine(number) for number in range(len(urls))]
        answers = [
            asyncio.create_task(
                wait_ready(
                    url, config.engine.start_seconds, key=self._job.engine_key, run=self._job.run_id
                )
            )
            for url in urls
        ]
        try:
            limit = f"at most {config.engine.start_seconds:g} s (engine.start_seconds)"
            with self._waits.on(
                lambda: f"the start of {_list_silent_engines(urls, answers)}, {limit}"
            ):
                await self._supervise_until(
                    lambda: learner.ended or all(task.done() for task in answers)
                )
        finally:
            for task in answers:
                task.cancel()
            await asyncio.wait(answers)
        if learner.ended:
            return False
        for number, task in enumerate(answers):
            try:
                await task
            except EngineNotReady as error:
                if not children:
                    raise
                cause = _with_cause(error, children[number])
                raise EngineNotReady(cause, error.option) from None
        # Over NCCL, an engine that is started again has no way to get the weights.
        if config.engine.weights == "file":
            self._engines = dict(enumerate(children))
        return True

    def _start_engine(self, number: int) -> ChildProcess:
        command = engine_command(self._job, number)
        name = _numbered_name("engine", number)
        launch = self._launch_command(self._job.endpoints.shard_of(number))
        arguments = engine_arguments(self._job, number, command)
        return self._add(spawn(name, arguments, self._log(name), command.environment, launch))

    def _start_shard(self, number: int) -> ChildProcess:
        name = _numbered_name("controller", number)
        arguments = ["controller", str(job_file(self._job)), str(number)]
        launch = self._launch_command(number)
        return self._add(spawn(name, arguments, self._log(name), launch=launch))

    def _launch_command(self, shard: int) -> list[str]:
        """The command that runs another one on the machine of a shard; empty if that is here."""
        if shard == 0:
            return []
        return [
            word.replace("{shard}", str(shard)) for word in self._job.config.cluster.shard_launch
        ]

    def _restart_ended(self) -> None:
        """Start engines and shards again that have ended.

        The controller gives them the newest weights.
        """
        self._restart_all(self._engines, self._start_engine)
        self._restart_all(self._shards, self._start_shard)

    def _restart_all(
        self, children: dict[int, ChildProcess], start_child: Callable[[int], ChildProcess]
    ) -> None:
        for number, child in children.items():
            if child.ended and self._restart_limit.allow(time.monotonic()):
                end = describe_end(child.process.returncode)
                self._progress.print(f"The {child.name} {end}: started again.")
                child.signal(signal.SIGKILL)  # what is left of it
                self.children.remove(child)
                children[number] = start_child(number)

    async def _supervise_until(self, is_over: Callable[[], bool]) -> None:
        """Watch all processes until `is_over()`.

        Raises ChildFailed when a process has ended in an error. So does a controller that is told
        to end: whenever it ends, its exit status is one of an error.
        """
        while not is_over():
            self._restart_ended()
            for child in self.children:
                child.check()
            for task in self._endless_tasks:
                if task.done():
                    # What broke in the collector, or in the watch over engines, ends the run.
                    task.result()
            self._end_without_figures()
            self._collector.state.waits.take(OWN_SOURCE, self._waits.seconds(), time.monotonic())
            self._collector.note_status()
            self._progress.tick()
            await asyncio.sleep(TICK_S)
        for child in self.children:
            child.check()
        if self._collector.failure is not None:
            raise self._collector.failure

    def _end_without_figures(self) -> None:
        """End a run whose figures cannot be written, as on a full disk.

        It ends in good order where there is something to keep, or else at once.
        """
        failure = self._collector.failure
        if failure is None or self._ending_without_figures:
            return
        phase = self._collector.state.phase.name
        learners = self._live_learners()
        if not learners or phase not in INTERRUPT_PROMISES:
            raise failure
        self._ending_without_figures = True
        self._progress.print(f"{failure}: {INTERRUPT_PROMISES[phase]}.")
        for child in learners:
            child.signal(signal.SIGINT)

    def _live_learners(self) -> list[ChildProcess]:
        return [child for child in self.children if child.name == "learner" and not child.ended]

    def interrupt(self) -> None:
        """Handle Ctrl-C.

        The first one lets the learner finish its update and write a checkpoint; a second one stops
        at once, as does the first one where there is nothing to keep.
        """
        learners = self._live_learners()
        phase = self._collector.state.phase.name
        is_first = not self.interrupted
        self.interrupted = True
        if is_first and learners and self._engines_answered and phase in INTERRUPT_PROMISES:
            promise = INTERRUPT_PROMISES[phase]
            self._progress.print(f"Interrupted: {promise}. Ctrl-C again stops at once.")
            for child in learners:
                child.signal(signal.SIGINT)
            return
        if is_first:
            self._progress.print(f"Interrupted ({phase}): nothing to keep yet, stopping.")
        else:
            self._progress.print("Interrupted: stopping at once.")
        if self._task is not None:
            self._task.cancel()

    def _phase(self, name: str) -> None:
        self._collector.handle(phase_stats(OWN_SOURCE, name))

    def _log(self, name: str) -> Path:
        return Path(self._job.run_dir) / "logs" / f"{name}.log"


def _numbered_name(kind: str, number: int) -> str:
    """The name of the process of a kind with that number: learner, learner-1, learner-2, ..."""
    if number == 0:
        return kind
    return f"{kind}-{number}"


def _list_silent_engines(urls: Sequence[str], answers: Sequence[asyncio.Task]) -> str:
    """The addresses of engines that do not answer yet."""
    return ", ".join(
        f"the engine at {url}" for url, task in zip(urls, answers, strict=True) if not task.done()
    )


def _with_cause(error: EngineNotReady, engine: ChildProcess) -> str:
    """The error's text, the error that the engine's log has, if any, and the log's path.

    An engine that is still loading has logged none: other lines would only look like a cause.
    """
    causes = [str(error), error_in(engine.log, engine.log_begin)]
    return f"{': '.join(filter(None, causes))}\nits log: {engine.log}"


def learner_arguments(job: Job, elapsed_s: float, rank: int = 0) -> list[str]:
    """Arguments of `python -m` for a rank of the learner, which sees the GPUs of its machine's.

    `elapsed_s`: how long the run has lasted before.
    """
    arguments = ["learner", str(job_file(job)), f"{elapsed_s:.3f}"]
    machines = rank_machines(job.config)
    gpus = [
        gpu
        for gpu, machine in zip(job.devices.learner, machines, strict=False)
        if machine == machines[rank]
    ]
    return on_devices(gpus, arguments)


def engine_arguments(job: Job, number: int, command: EngineCommand) -> list[str]:
    """Arguments of `python -m` for an engine, which sees its own GPUs."""
    if not job.devices.engines:
        return command.arguments
    return on_devices(job.devices.engines[number].gpus, command.arguments)


def learner_environments(config: Config) -> list[dict[str, str]]:
    """Environment variables of each rank of the learner.

    They are those of torchrun, which may start ranks elsewhere. A single rank needs none. Ranks of
    several machines meet at learner.host, those of one on that machine.
    """
    ranks = config.learner.ranks
    if ranks == 1:
        return [{}]
    host = LOOPBACK
    if config.cluster.learner_machines > 1:
        host = config.learner.host
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": host, "MASTER_PORT": str(free_port())}
    on_machine = ranks // config.cluster.learner_machines
    return [
        {**group, "RANK": str(rank), "LOCAL_RANK": str(rank % on_machine)} for rank in range(ranks)
    ]


@contextlib.asynccontextmanager
async def receiving(
    job: Job, collector: Collector, context: zmq.asyncio.Context | None = None
) -> AsyncIterator[asyncio.Task]:
    """Pass what processes report to the collector while inside; yields the task that does it."""
    run_context = context or zmq.asyncio.Context()
    keys = load_keys(job.config.security.keys)
    reader = FrameReader()
    listener = DeliveryServer(
        run_context,
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
        async with admit_key_holders(run_context, keys):
            yield tasks[0]
            await asyncio.wait(tasks, timeout=DRAIN_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        listener.close(0.0)
        if context is None:
            run_context.term()


async def _receive(
    listener: DeliveryServer, reader: FrameReader, collector: Collector, lag: LoopLag
) -> None:
    while True:
        peer, message, _ = await listener.receive()
        if not isinstance(message, Stats):
            reader.refuse(peer, f"{type(message).__name__} that the supervisor does not read")
            continue
        flaw = validate_stats(message)
        if flaw:
            reader.refuse(peer, flaw)
            continue
        if message.event == "update":
            collector.handle(
                Stats(source="supervisor", event="gauge", values={"loop_lag": lag.read().worst})
            )
        collector.handle(message)
