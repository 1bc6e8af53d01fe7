"""Whole runs for tests: the command line in a process of its own, and the engine of `--serial` in
the test's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from config import Config, ConfigError, Job
from config.resolve import resolve, to_toml
from engine.fake.server import FakeEngine
from learner.warm_start.build import build_policy
from protocol.codec import decode
from protocol.lifetime import dying_with_parent
from protocol.messages import SCHEMA_VERSION, Trajectory
from protocol.security import make_keys
from supervisor.cluster.layout import keys_of
from supervisor.endpoints import choose_endpoints, free_port
from supervisor.job import save_job
from supervisor.serial import train_serially
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics

ROOT = Path(__file__).resolve().parent.parent

SMALL = {
    "model.tiny.hidden_size": "64",
    "model.tiny.layers": "2",
    "model.tiny.heads": "2",
    "warm_start.episodes": "0",
    "sampling.max_tokens": "16",
    "sampling.per_request_seeds": "true",
    "learner.groups_per_update": "2",
    "learner.group_size": "2",
    "eval.episodes": "2",
    "eval.every": "0",
    "actor.count": "4",
    "run.max_updates": "2",
    "learner.checkpoint_every": "1",
    "learner.lr_decay_fraction": "0",
}
"""A run of a policy that knows nothing, in seconds."""


def small_config(**overrides: str) -> Config:
    """SMALL with overrides; dots in names are written as double underscores."""
    return resolve(
        None, SMALL | {name.replace("__", "."): value for name, value in overrides.items()}
    )


def job_in(directory: Path, config: Config) -> Job:
    """A job that was not started by the supervisor, with its policy, which is built once for all
    tests with the same one."""
    (directory / "weights").mkdir(parents=True)
    job = Job(
        config=config,
        endpoints=choose_endpoints(config),
        run_dir=str(directory),
        model_dir=str(directory / "policy"),
        weights_dir=str(directory / "weights"),
        schema=SCHEMA_VERSION,
    )
    if config.model.name != "tiny":
        return msgspec.structs.replace(job, model_dir=config.model.name)
    shown = msgspec.structs.replace(
        config.warm_start, episodes=0
    )  # what the tokenizer learns from, however much of it is trained on
    depends = msgspec.json.encode(
        [config.env, config.environment_settings(), config.model, shown, config.run.seed]
    )
    kept = Path(_built.name) / sha256(depends).hexdigest()
    build_policy(msgspec.structs.replace(job, model_dir=str(kept)))
    shutil.copytree(kept, directory / "policy")
    return job


def played_serially(directory: Path, config: Config) -> Job:
    """A run that has ended, with all that commands look for in its directory."""
    job = job_in(directory, config)
    (directory / "config.toml").write_text(to_toml(config))
    save_job(job)
    asyncio.run(train_serially(job, Console(quiet=True)))
    return job


def noted_engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """The engines of serial runs that begin from now on; `served` counts the requests of each."""
    made: list[FakeEngine] = []

    class Noted(FakeEngine):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            self.served = 0
            made.append(self)

        async def _generate(self, request):
            self.served += 1
            return await super()._generate(request)

    monkeypatch.setattr("supervisor.serial.FakeEngine", Noted)
    return made


_built = tempfile.TemporaryDirectory()


class Run:
    """`python run.py ARGUMENTS` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.output = ""

    async def ended(self, seconds: float = 120.0) -> int:
        """Its exit status; `output` has what it printed."""
        async with asyncio.timeout(seconds):
            out, _ = await self.process.communicate()
        self.output = out.decode()
        return self.process.returncode

    async def until(self, condition, seconds: float = 60.0):
        """Wait until `condition()` is true; returns what it is then.

        Fails if the run ends first.
        """
        async with asyncio.timeout(seconds):
            while not (value := condition()):
                assert self.process.returncode is None, (
                    f"the run ended first: {(await self.process.stdout.read()).decode()}"
                )
                await asyncio.sleep(0.05)
        return value

    def metrics(self) -> list[dict]:
        return read_metrics(self.directory / METRICS_FILE)

    def updates(self) -> list[dict]:
        return [line for line in self.metrics() if line["kind"] == "update"]

    def summary(self) -> dict:
        return json.loads((self.directory / "summary.json").read_text())

    def trajectories(self) -> list[Trajectory]:
        return trajectories_of(self.directory)

    def pid_of(self, name: str, *arguments: str) -> int | None:
        """The process `python -m NAME JOB ARGUMENTS` of this run."""
        lasted = r" [\d.]+" if name == "learner" else ""  # seconds, which nobody knows here
        wanted = re.compile(
            re.escape(" ".join(["-m", name, f"{self.directory}/job.json", *arguments]))
            + lasted
            + "$"
        )
        return next((pid for pid, command in processes() if wanted.search(command)), None)

    def children_of(self, pid: int) -> list[int]:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def left_over(self) -> list[str]:
        """Processes of this run that are still there."""
        return [command for _, command in processes() if f"{self.directory}/job.json" in command]


def processes() -> list[tuple[int, str]]:
    """(pid, command line) of everything that runs here."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found.append(
                    (
                        int(entry.name),
                        (entry / "cmdline")
                        .read_bytes()
                        .replace(b"\0", b" ")
                        .decode(errors="replace")
                        .strip(),
                    )
                )
    return found


def trajectories_of(directory: Path) -> list[Trajectory]:
    """What a run's episode log holds."""
    from learner.data.episode_log import read_records

    return [decode(frame) for _, _, frame in read_records(directory / "episodes")]


def dies_at(moment: str, done: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In runs that begin from now on, a process dies at that moment ("module:name when count": see
    tests/worst_moment); `done` is there when it has happened."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests' / 'worst_moment'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("DIES", f"{moment} {done}")
    return done


def with_shadows(directory: Path, *more: str) -> Path:
    """The directory, in which a user has modules and packages with the names of ours, and of
    `more`. None of them can be imported."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("config", "protocol", "run", *more):
        (directory / f"{name}.py").write_text(f"raise RuntimeError('the {name} of {directory}')\n")
    for name in ("actors", "controller", "engine", "envs", "learner", "supervisor", "telemetry"):
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text(
            f"raise RuntimeError('the {name} of {directory}')\n"
        )
    return directory


@contextlib.asynccontextmanager
async def running(
    directory: Path,
    *arguments: str,
    cwd: Path = ROOT,
    program: Sequence[str] = (str(ROOT / "run.py"),),
) -> AsyncIterator[Run]:
    """The command line with these arguments; killed at the end if it has not ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        *arguments,
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=dying_with_parent(),
    )
    try:
        yield Run(process, directory)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


@contextlib.asynccontextmanager
async def small_engine(
    policy: Path, keys: str = "", shards: int = 1
) -> AsyncIterator[dict[str, str]]:
    """SMALL, of a run that asks the small engine, which runs while inside; an engine for each
    shard."""
    signals = free_ports(shards)
    engines = [
        FakeEngine(policy, signals=f"tcp://127.0.0.1:{signals + number}", keys=keys)
        for number in range(shards)
    ]
    urls = [await engine.start() for engine in engines]
    try:
        asked = {
            "model.name": str(policy),
            "engine.urls": ",".join(urls),
            "controller.signals_port": str(signals),
        }
        yield (
            SMALL | {"env.max_turns": "5"} | asked
        )  # the small engine is slow, and its policy wins nothing in more turns either
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))


def free_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    while True:
        first = free_port()
        with contextlib.suppress(ConfigError):
            for number in range(1, count):
                free_port(port=first + number)
            return first


def options(settings: dict[str, str]) -> list[str]:
    """On the command line."""
    return [f"--{name}={value}" for name, value in settings.items()]


@contextlib.asynccontextmanager
async def running_small(directory: Path, policy: Path, **overrides: str) -> AsyncIterator[Run]:
    """A run of real processes as SMALL describes it, against the small engine."""
    shards = int(overrides.get("cluster__shards", "1"))
    async with small_engine(policy, overrides.get("security__keys", ""), shards) as settings:
        settings |= {"run.dir": str(directory)} | {
            name.replace("__", "."): value for name, value in overrides.items()
        }
        resumed = settings.pop("resume", None)
        arguments = ["--resume", resumed] if resumed else []
        async with running(directory, *arguments, *options(settings)) as run:
            yield run


@contextlib.asynccontextmanager
async def small_elsewhere(directory: Path, policy: Path) -> AsyncIterator[list[str]]:
    """Arguments of commands that put a run in `directory` on several machines: one like
    `running_small`'s, with keys that are there."""
    make_keys(keys_of(directory), "actors")
    async with small_engine(policy, str(keys_of(directory))) as settings:
        del settings["actor.count"]
        yield [
            str(directory),
            "--actors",
            "2",
            *options(settings | {"controller.port": str(free_port())}),
        ]
