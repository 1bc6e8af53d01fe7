"""Faults of every kind at random, on real vLLM; and whether anything was lost, or trained on twice.

`python -m benchmarks.chaos [--minutes N] [--seed K] [--quick] [--json FILE]`

A small run goes on all the time, with actors of its own and some from elsewhere, whose links go
through a proxy: when a fault ends the run, it is resumed. Every few seconds something happens
(benchmarks/chaos_faults.py): a process is killed or stopped, links are cut or become silent, user
code or an engine goes wrong from inside, the clock jumps, the disk is full, the terminal goes away.
At the end the run is interrupted as by Ctrl-C, and what it left is compared with what is promised:

    lost            episodes of groups that the last checkpoint has in its weights, or as dropped,
                    which are not in the log
    trained twice   episodes that are in the log twice: played again although one was acknowledged
    too old         updates with a token that is older than max_staleness and order_window allow
    left over       processes, or weights on shared memory, after a run had ended
    stuck           faults after which no update came

The full disk needs permission to mount one of its own; without it that fault is left out, and the
benchmark says so.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import chaos_environment, load_environment
from benchmarks.chaos_faults import FAULTS, QUICK, Fault
from benchmarks.chaos_proxy import Proxy
from learner.checkpoint import latest, read_state
from learner.data.episode_log import read_records
from protocol.codec import decode
from protocol.lifetime import dying_with_parent
from protocol.messages import Trajectory
from supervisor.endpoints import free_port
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics, select_kind

ROOT = Path(__file__).resolve().parent.parent
GROUPS = 2
GROUP_SIZE = 2
MAX_STALENESS = 1
ORDER_WINDOW = 1
SHARDS = 2
SETTINGS = {
    "env.name": chaos_environment.NAME,
    "actor.step_timeout": str(chaos_environment.STEP_TIMEOUT_SECONDS),
    "model.tiny.hidden_size": "64",
    "model.tiny.layers": "2",
    "model.tiny.heads": "2",
    "warm_start.episodes": "0",
    "sampling.max_tokens": "16",
    "learner.groups_per_update": str(GROUPS),
    "learner.group_size": str(GROUP_SIZE),
    "learner.max_staleness": str(MAX_STALENESS),
    "learner.order_window": str(ORDER_WINDOW),
    "learner.checkpoint_every": "2",
    "learner.lr_decay_fraction": "0",
    "eval.episodes": "2",
    "eval.every": "0",
    "actor.count": "3",
    "actor.heartbeat_seconds": "0.5",
    "run.max_updates": "1000000",
    "run.max_minutes": "100000",
    "engine.kv_cache_gb": "0.25",
    "cluster.shards": str(SHARDS),
    "engine.count": "2",
}
ELSEWHERE = "127.0.0.2"
"""Address at which actors from elsewhere find the run: on this machine, behind the proxy."""
ACTORS_ELSEWHERE = 2
BAD = ("lost", "trained_twice", "too_old", "missing_updates", "left_over", "stuck")
"""Figures that are to be 0."""
PATIENCE = 180.0
"""Seconds until a run that was started, or hit, makes its next update.

An engine that is started again needs most of them.
"""
TOGETHER = 0.4
"""Share of the faults that are followed by the next one at once.

What two of them do together is another fault.
"""
ENDING = 15.0
"""Seconds until nothing is left of a run that was killed."""
DISK_MB = 512
"""Size of the disk that becomes full."""
CLONE_NEWNS = 0x20000
"""Linux, unshare(2)."""


class Run:
    """A run that is resumed as often as it ends, and the actors from elsewhere that play for it."""

    def __init__(self, directory: Path, disk: Path | None) -> None:
        """Name a `directory` for all that the benchmark writes.

        `disk` is one that holds the run alone, and may be filled.
        """
        self.directory = (disk or directory) / "run"
        self.disk = disk
        self.misfortunes = directory / "misfortunes"
        self.misfortunes.mkdir()
        self._weights: set[Path] = set()
        self._output = directory / "output.log"
        load_environment.install(
            directory, chaos_environment.NAME, f"{chaos_environment.__name__}:Unlucky"
        )
        path = os.pathsep.join([str(ROOT / "benchmarks" / "misfortune"), str(directory), str(ROOT)])
        self._environment = os.environ | {
            "PYTHONPATH": path,
            chaos_environment.MISFORTUNES: str(self.misfortunes),
        }
        first = free_port()
        trajectories = free_port(port=first + SHARDS, setting="learner.port")
        self._ports = {"controller.port": str(first), "learner.port": str(trajectories)}
        self.proxy = Proxy(ELSEWHERE, "127.0.0.1", [*range(first, first + SHARDS), trajectories])
        self._process: subprocess.Popen | None = None
        self._fleet: subprocess.Popen | None = None

    def start(self) -> None:
        """Begin, or go on."""
        self._note_weights()
        how = [
            "--run.dir",
            str(self.directory),
            "--run.cache_dir",
            str(self.directory.parent / "cache"),
        ]
        if (self.directory / "config.toml").exists():
            how = ["--resume", str(self.directory)]
        settings = [f"--{name}={value}" for name, value in (SETTINGS | self._ports).items()]
        self._process = self._run(*how, *settings)
        if self._fleet is None or self._fleet.poll() is not None:
            address = f"tcp://{ELSEWHERE}:{self._ports['controller.port']}"
            joins = ["--connect", address, "--actors", str(ACTORS_ELSEWHERE), "--wait", "3600"]
            self._fleet = self._run("actor", *joins)

    def _run(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "run.py", *arguments]
        with self._output.open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment,
                stdout=output,
                stderr=output,
                preexec_fn=dying_with_parent(),
            )

    def close(self) -> None:
        """End the run, if it has not ended, the actors from elsewhere, and the proxy."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._fleet is not None:
            self._fleet.terminate()
            self._fleet.wait(ENDING)
        self.proxy.close()

    def log_tail(self) -> str:
        """The end of what the run has printed."""
        return self._output.read_text(errors="replace")[-3000:]

    @property
    def process(self) -> subprocess.Popen:
        """The run's first process, once it was started."""
        assert self._process is not None, "the run was not started"
        return self._process

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def updates(self) -> list[dict]:
        return select_kind(read_metrics(self.directory / METRICS_FILE), "update")

    def processes(self, victim: str) -> list[psutil.Process]:
        """Those of the run that are `victim`."""
        if victim == "supervisor":
            return [psutil.Process(self.process.pid)]
        if victim == "actor":
            return [
                child for server in self.processes("fork server") for child in server.children()
            ]
        job = re.escape(str(self.directory / "job.json"))
        marks = {
            "fork server": rf"-m actors {job}$",
            "controller": rf"-m controller {job}$",
            "shard": rf"-m controller {job} 1$",
            "learner": rf"-m learner {job} [\d.]+$",
            "engine": r"-m vllm\.entrypoints",
        }
        found = [process for process, command in self._all() if re.search(marks[victim], command)]
        return [
            process for process in found if process.ppid() not in {other.pid for other in found}
        ]  # a forked child has the same command

    def left_over(self) -> list[str]:
        """Command lines of processes that outlive the run, after a while."""
        deadline = time.monotonic() + ENDING
        while True:
            commands = [command for _, command in self._all()]
            if not commands or time.monotonic() >= deadline:
                return commands
            time.sleep(0.1)

    def shared_memory(self) -> list[Path]:
        """Published weights that are still there, of whichever start."""
        self._note_weights()
        return [weights for weights in self._weights if weights.exists()]

    def _note_weights(self) -> None:
        job = self.directory / "job.json"
        if job.exists():
            self._weights.add(Path(json.loads(job.read_text())["weights_dir"]))

    def _all(self) -> Iterator[tuple[psutil.Process, str]]:
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if (
                str(self.directory) in command
                and process.pid != self.process.pid
                and " -m " in command
            ):
                yield process, command


@dataclass
class Report:
    """Faults that struck, and what became of the run after them."""

    faults: Counter = field(default_factory=Counter)
    resumed: int = 0
    left_over: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)  # faults after which no update came


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="how long (default %(default)g)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of what happens to whom (default %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="five faults, none of which ends the run"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # as Ctrl-C: what is set up here is taken down
    chance = random.Random(options.seed)
    console = Console()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        disk = stack.enter_context(small_disk(directory / "disk"))
        if disk is None:
            console.print("no permission to mount a disk: none becomes full")
        run = Run(directory, disk)
        stack.callback(run.close)
        report = rage(run, chance, 60 * options.minutes, console, quick=options.quick)
        figures = judge(run, report)
        if any(figures[name] for name in BAD):
            console.print(run.log_tail(), markup=False, highlight=False)
    console.print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    sys.exit(any(figures[name] for name in BAD))


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path | None]:
    """A disk of DISK_MB that is mounted at `place` while inside; None where that is not permitted.

    This process and its children alone see it, so that it ends with them, however they end.
    """
    place.mkdir()
    try:
        leave_mounts_of_others()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(place)],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def leave_mounts_of_others() -> None:
    """Give this thread, and the processes that it starts, a mount namespace of their own.

    Raises OSError, or CalledProcessError, where that is not permitted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no mount namespace")
    subprocess.run(
        ["mount", "--make-rprivate", "/"], check=True, capture_output=True
    )  # or others would get what is mounted here


def rage(
    run: Run, chance: random.Random, seconds: float, console: Console, *, quick: bool
) -> Report:
    """Let faults happen until the time is over; then interrupt the run, which ends."""
    report = Report()
    run.start()
    await_update(run, report, "the start")
    over = time.monotonic() + seconds
    for fault in faults(chance, quick):
        if not quick and time.monotonic() > over:
            break
        time.sleep(chance.uniform(0.0, 3.0))  # so that every moment of an update is hit
        console.print(f"{fault} after update {len(run.updates())}", highlight=False)
        if not run.ended and fault.strike(run, chance):
            report.faults[str(fault)] += 1
        if chance.random() >= TOGETHER:
            await_update(run, report, str(fault))
    await_update(run, report, "the last fault")
    run.process.send_signal(signal.SIGINT)
    run.process.wait(PATIENCE)
    report.left_over += run.left_over()
    return report


def faults(chance: random.Random, quick: bool) -> Iterator[Fault]:
    """Yield the faults of a quick benchmark, or all there are, in one random order after another.

    Each kind comes about as often.
    """
    if quick:
        yield from QUICK
        return
    while True:
        yield from chance.sample(FAULTS, len(FAULTS))


def await_update(run: Run, report: Report, cause: str) -> None:
    """Wait until the run, which may have to be resumed for it, has made another update."""
    time.sleep(0.5)
    before = len(run.updates())
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if run.ended:
            report.left_over += run.left_over()
            run.start()
            report.resumed += 1
            before = -1
            deadline = time.monotonic() + PATIENCE
            while not run.processes("learner") and time.monotonic() < deadline and not run.ended:
                time.sleep(0.1)
        if before < 0:
            before = len(run.updates())
        if len(run.updates()) > before:
            return
        time.sleep(0.1)
    report.stuck.append(cause)


def judge(run: Run, report: Report) -> dict:
    """The figures, by the log and the last checkpoint."""
    played = [decode(frame) for _, _, frame in read_records(run.directory / "episodes")]
    copies = Counter(t.key for t in played if isinstance(t, Trajectory) and not t.key.evaluation)
    newest = latest(run.directory)
    assert newest is not None, "the run has left no checkpoint"
    intake = read_state(newest).intake
    trained = [*range(intake.next_group), *intake.trained_ahead]
    there = {(key.group, key.member) for key in copies}
    updates = run.updates()
    return {
        "faults": sum(report.faults.values()),
        "by_kind": dict(report.faults),
        "resumed": report.resumed,
        "updates": len(updates),
        "episodes": len(copies),
        "lost": sum(
            (group, member) not in there for group in trained for member in range(GROUP_SIZE)
        ),
        "trained_twice": sum(count - 1 for count in copies.values()),
        "too_old": sum(line["token_age_max"] > MAX_STALENESS + ORDER_WINDOW for line in updates),
        "missing_updates": sorted(
            set(range(1, len(updates) + 1)) ^ {line["update"] for line in updates}
        ),
        "left_over": len(report.left_over) + len(run.shared_memory()),
        "stuck": len(report.stuck),
    }


def table(figures: dict) -> Table:
    made = Table("", "", title="Chaos", show_header=False)
    for name, value in figures.items():
        made.add_row(
            name.replace("_", " "),
            ", ".join(f"{kind}: {count}" for kind, count in value.items())
            if isinstance(value, dict)
            else str(value),
        )
    return made


if __name__ == "__main__":
    main()
