"""Measure controller and learner under load.

There are thousands of episodes at once, slow and fast actors, and a learner that stalls.

`python -m benchmarks.load [--actors N] [--episodes N] [--turns N] [--tokens N] [--stall SECONDS]
[--quick] [--json FILE]` (some minutes, 3 GB)

Real: the controller's process; the learner's process with all its loops (intake, log, groups,
acknowledgements, publishing of weights); the actors, each a process of its own, of two fleets
(actors.fleet); ZeroMQ, HTTP and signals between them; control, with its default settings. Not real:
the engine computes no model (its logits come from a table; requests, sampling, signals and weight
updates are those of engine/fake/server.py); the learner computes no gradients (an update takes no
time, but for the one in the middle, which stalls); the environment only waits, for a quarter of the
actors half a second a turn, for the others 10 ms. All share the machine, so that turns a second are
of the whole of it, and the engine's part is not vLLM's.

What is measured: turns a second before the stall, and the processor time that a turn takes in each
process; memory of controller and learner; fairness, as the episodes that each actor delivered;
back-pressure, as what is in flight and what waits while the learner stalls (at most (S+1) P groups
are admitted); how late event loops were.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import psutil
import zmq
import zmq.asyncio
from rich.console import Console

from benchmarks import load_environment
from benchmarks.load_processes import INTAKE
from benchmarks.load_report import Sample, figures, table
from config import Job
from config.resolve import resolve
from engine.launch import wait_ready
from protocol.codec import FrameReader
from protocol.delivery import DeliveryServer
from protocol.messages import Stats
from protocol.validation import REPORTED
from supervisor.endpoints import choose_endpoints
from supervisor.job import job_file, save_job
from supervisor.process import ChildProcess, spawn, stop_all

STEP_SECONDS = {"slow": 0.5, "fast": 0.01}
SLOW_SHARE = 0.25
STALENESS = 3
"""S: while P groups are trained on, 3 P are played or wait."""
GROUP_SIZE = 8
SLACK = 2
"""Episodes admitted for each that is in flight.

A group waits for its slowest member, and a batch for its slowest group.
"""
SETTINGS = {
    "env.name": load_environment.NAME,
    "model.tiny.hidden_size": "32",
    "model.tiny.layers": "1",
    "model.tiny.heads": "1",
    "model.tiny.vocabulary": "512",
    "warm_start.episodes": "0",
    "eval.episodes": "1",
    "eval.every": "0",
    "run.max_minutes": "600",
    "learner.group_size": str(GROUP_SIZE),
    "learner.max_staleness": str(STALENESS),
    "learner.checkpoint_every": "1000000",
    "engine.count": "1",
    "actor.step_timeout": "120",
}


def make_job(directory: Path, options: argparse.Namespace) -> Job:
    """With as many groups that there is enough to play, and as many updates as the turns make."""
    in_flight = options.actors * options.episodes
    groups = ceil(SLACK * in_flight / ((STALENESS + 1) * GROUP_SIZE))
    updates = ceil(options.turns / (groups * GROUP_SIZE * load_environment.MEAN_TURNS))
    sizes = {
        "learner.groups_per_update": str(groups),
        "run.max_updates": str(updates),
        "actor.count": str(options.actors),
    }
    sizes["sampling.max_tokens"] = str(options.tokens)
    config = resolve(None, SETTINGS | sizes | {"run.dir": str(directory)})
    job = Job(
        config=config,
        endpoints=choose_endpoints(config),
        run_dir=str(directory),
        model_dir=str(directory / "policy"),
        weights_dir=str(directory / "weights"),
    )
    save_job(job)
    return job


class Load:
    """The processes, and what is seen of them."""

    def __init__(self, job: Job, options: argparse.Namespace, console: Console) -> None:
        self.job = job
        self.options = options
        self.console = console
        self._started = time.monotonic()
        self.samples: list[Sample] = []
        self.actors: dict[str, set[int]] = {kind: set() for kind in STEP_SECONDS}
        self._children: dict[str, ChildProcess] = {}
        self._gauges: dict[str, float] = {}
        self._dropped = 0.0

    def _start(self, name: str, arguments: list[str], **environment: str) -> ChildProcess:
        log = Path(self.job.run_dir) / "logs" / f"{name}.log"
        path = os.pathsep.join([str(Path(__file__).parent.parent), self.job.run_dir])
        self._children[name] = spawn(
            name, arguments, log, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
        )
        return self._children[name]

    def _say(self, text: str) -> None:
        self.console.print(f"{time.monotonic() - self._started:4.0f} s  {text}", highlight=False)

    async def run(self) -> None:
        """To the end of the last update. Raises ChildFailed when a process failed."""
        file = str(job_file(self.job))
        try:
            self._say("building a policy")
            builder = self._start("policy", ["learner.warm_start.build", file])
            while not builder.ended:
                await asyncio.sleep(0.1)
            builder.check()
            self._say("starting engine, learner, controller and actors")
            with self._receiving():
                self._start("engine", ["benchmarks.load_processes", "engine", file])
                learner = self._start(
                    "learner",
                    [
                        "benchmarks.load_processes",
                        "learner",
                        file,
                        "--stall",
                        str(self.options.stall),
                    ],
                )
                await wait_ready(self.job.endpoints.engines[0], 120)
                self._start("controller", ["controller", file])
                slow = max(1, round(SLOW_SHARE * self.options.actors))
                for kind, count in (("slow", slow), ("fast", self.options.actors - slow)):
                    arguments = [
                        "run",
                        "actor",
                        "--connect",
                        self.job.endpoints.actors,
                        "--actors",
                        str(count),
                    ]
                    arguments += ["--episodes", str(self.options.episodes), "--wait", "120"]
                    self._start(
                        kind, arguments, **{load_environment.SECONDS: str(STEP_SECONDS[kind])}
                    )
                await self._watch(learner)
        finally:
            stop_all(list(reversed(self._children.values())))

    async def _watch(self, learner: ChildProcess) -> None:
        seconds = 0
        while not learner.ended:
            for child in self._children.values():
                child.check()
            memory = {
                name: resident_megabytes(self._children[name].process.pid)
                for name in ("controller", "learner")
            }
            cpu = {
                name: processor_seconds(self._children[name].process.pid)
                for name in ("controller", "learner", "engine")
            }
            cpu["actors"] = sum(
                processor_seconds(pid) for pids in self.actors.values() for pid in pids
            )
            self.samples.append(Sample(time.time(), memory, cpu, dict(self._gauges), self._dropped))
            self._gauges = {
                name: value for name, value in self._gauges.items() if "loop_lag" not in name
            }  # else the same one counts again
            for kind in self.actors:
                self.actors[kind] |= children_of(self._children[kind].process.pid)
            if seconds % 5 == 0 and "slots_taken" in self._gauges:
                shown = {
                    "update": "update",
                    "episodes_in_flight": "in flight",
                    "queue_leases": "wait for an actor",
                }
                shown |= {"queue_trajectories": "for the learner"}
                self._say(
                    ", ".join(
                        f"{text} {self._gauges.get(name, 0):,.0f}" for name, text in shown.items()
                    )
                )
            seconds += 1
            await asyncio.sleep(1.0)
        learner.check()

    @contextlib.contextmanager
    def _receiving(self) -> Iterator[None]:
        """While inside, what processes report is kept."""
        context = zmq.asyncio.Context()
        names = [name.encode() for name in REPORTED]
        listener = DeliveryServer(
            context,
            self.job.endpoints.stats,
            names,
            None,
            self.job.config.actor.heartbeat_seconds,
            FrameReader(),
        )
        task = asyncio.create_task(self._receive(listener))
        try:
            yield
        finally:
            task.cancel()
            context.destroy(linger=0)

    async def _receive(self, listener: DeliveryServer) -> None:
        while True:
            _, message, _ = await listener.receive()
            assert isinstance(message, Stats)
            numbers = {
                name: value
                for name, value in message.values.items()
                if isinstance(value, float | int)
            }
            if message.event in ("update", "dropped"):
                self._dropped += sum(
                    value for name, value in numbers.items() if name.startswith("dropped_")
                )
            if message.event == "update":
                self._gauges["update"] = numbers["update"]
            elif message.event == "gauge":
                self._gauges |= {
                    f"{name}_learner" if name == "loop_lag" else name: value
                    for name, value in numbers.items()
                }


def resident_megabytes(pid: int) -> float:
    """Return the megabytes of memory that a process has; NaN when it is gone."""
    try:
        return psutil.Process(pid).memory_info().rss / 1e6
    except psutil.NoSuchProcess:
        return float("nan")


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used, in seconds; NaN when it is gone."""
    try:
        return sum(psutil.Process(pid).cpu_times()[:2])
    except psutil.NoSuchProcess:
        return float("nan")


def children_of(pid: int) -> set[int]:
    """Processes that `pid` has started and that are still there."""
    try:
        return {child.pid for child in psutil.Process(pid).children()}
    except psutil.NoSuchProcess:
        return set()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--actors", type=int, default=256, help="processes (default %(default)s)")
    parser.add_argument(
        "--episodes", type=int, default=8, help="that each plays at once (default %(default)s)"
    )
    parser.add_argument("--turns", type=int, default=50_000, help="in all (default %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=8, help="of a response, at most (default %(default)s)"
    )
    parser.add_argument(
        "--stall",
        type=float,
        default=60.0,
        help="seconds that the update in the middle takes (default %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="under a minute: 100 episodes in flight, 2,000 turns, a stall of 3 s",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    if options.quick:
        options.actors = 20
        options.episodes = 5
        options.turns = 2_000
        options.stall = 3.0
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        load_environment.install(directory)
        sys.path.append(temporary)
        load = Load(make_job(directory, options), options, console)
        asyncio.run(load.run())
        found = figures(
            load.job.config.learner,
            load.samples,
            load.actors,
            json.loads((directory / INTAKE).read_text()),
        )
    console.print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
