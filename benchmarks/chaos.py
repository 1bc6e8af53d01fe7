"""Processes killed and stopped at random, on real vLLM; and whether anything was lost, or trained on twice.

`python -m benchmarks.chaos [--minutes N] [--seed K] [--quick] [--json FILE]`

A small run goes on all the time: when a fault ends it, it is resumed. Every few seconds somebody is killed (SIGKILL), or stopped for a
while (SIGSTOP, SIGCONT). At the end the run is interrupted as by Ctrl-C, and what it left is compared with what is promised:

    lost            episodes of groups that the last checkpoint has in its weights, or as dropped, which are not in the log
    trained twice   episodes that are in the log twice: played again although one was acknowledged
    too old         updates with a token that is older than max_staleness
    left over       processes, or weights on shared memory, after a run had ended
"""

from __future__ import annotations

import argparse
import json
import random
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

from learner.checkpoint import latest, read_state
from learner.episode_log import read_records
from protocol.codec import decode
from protocol.messages import Trajectory
from telemetry.metrics_file import METRICS_FILE, of_kind, read_metrics

ROOT = Path(__file__).resolve().parent.parent
GROUPS, GROUP_SIZE, MAX_STALENESS = 2, 2, 1
SETTINGS = {
    "model.hidden_size": "64", "model.layers": "2", "model.heads": "2", "warm_start.episodes": "0", "sampling.max_tokens": "16",
    "learner.groups": str(GROUPS), "learner.group_size": str(GROUP_SIZE), "learner.max_staleness": str(MAX_STALENESS),
    "learner.checkpoint_every": "2", "learner.decay": "0", "eval.episodes": "2", "eval.every": "0", "actor.count": "4",
    "actor.heartbeat_seconds": "0.5", "env.max_turns": "6", "run.updates": "1000000", "run.minutes": "100000", "engine.kv_cache_gb": "0.25",
    "controller.shards": "2", "engine.count": "2",
}  # fmt: skip
BAD = ("lost", "trained_twice", "too_old", "missing_updates", "left_over", "stuck")
"""Figures that are to be 0."""
PATIENCE = 180.0
"""Seconds until a run that was started, or hit, makes its next update: an engine that is started again needs most of them."""
ENDING = 15.0
"""Seconds until nothing is left of a run that was killed."""


@dataclass(frozen=True)
class Fault:
    """What happens to whom."""

    victim: str
    stop: bool = False  # for a while; else it is killed

    def __str__(self) -> str:
        return f"{'stop' if self.stop else 'kill'} {self.victim}"


VICTIMS = ("actor", "controller", "shard", "engine", "learner")
FAULTS = [*(Fault(victim, stop) for victim in VICTIMS for stop in (False, True)), Fault("fork server"), Fault("supervisor")]


class Run:
    """A run that is resumed as often as it ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._weights: set[Path] = set()
        self._log = directory.parent / "output.log"

    def start(self) -> None:
        """Begin, or go on."""
        self._note_weights()
        how = (
            ["--resume", str(self.directory)]
            if latest(self.directory)
            else [f"--run.dir={self.directory}", f"--run.cache_dir={self.directory}"]
        )
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        with self._log.open("ab") as output:
            self.process = subprocess.Popen([sys.executable, "run.py", *how, *settings], cwd=ROOT, stdout=output, stderr=output)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def updates(self) -> list[dict]:
        return of_kind(read_metrics(self.directory / METRICS_FILE), "update")

    def processes(self, victim: str) -> list[psutil.Process]:
        """Those of the run that are `victim`."""
        if victim == "supervisor":
            return [psutil.Process(self.process.pid)]
        if victim == "actor":
            return [child for server in self.processes("fork server") for child in server.children()]
        job = self.directory / "job.json"
        marks = {
            "fork server": f"-m actors {job}", "controller": f"-m controller {job}", "shard": f"-m controller {job} 1",
            "learner": f"-m learner {job}",
        }  # fmt: skip
        if victim == "engine":
            found = [process for process, command in self._all() if "-m vllm.entrypoints" in command]
        else:
            found = [process for process, command in self._all() if command.endswith(marks[victim])]
        return [process for process in found if process.ppid() not in {other.pid for other in found}]  # a forked child has the same command

    def left_over(self) -> list[str]:
        """Command lines of processes that outlive the run, after a while."""
        deadline = time.monotonic() + ENDING
        while (left := [command for _, command in self._all()]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

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
            if str(self.directory) in command and process.pid != self.process.pid and " -m " in command:
                yield process, command


@dataclass
class Report:
    """What happened."""

    faults: Counter = field(default_factory=Counter)
    resumed: int = 0
    left_over: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)  # faults after which no update came


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of what happens to whom (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="three faults, none of which ends the run")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    chance, console = random.Random(options.seed), Console()
    with tempfile.TemporaryDirectory() as directory:
        run = Run(Path(directory) / "run")
        report = rage(run, chance, 60 * options.minutes, console, quick=options.quick)
        figures = judge(run, report)
    console.print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    sys.exit(any(figures[name] for name in BAD))


def rage(run: Run, chance: random.Random, seconds: float, console: Console, *, quick: bool) -> Report:
    """Faults until the time is over; then the run is interrupted, and ends."""
    report = Report()
    run.start()
    await_update(run, report, "the start")
    faults = [Fault("actor"), Fault("actor", True), Fault("controller", True)] if quick else None
    over = time.monotonic() + seconds
    while faults if quick else time.monotonic() < over:
        time.sleep(chance.uniform(0.0, 4.0))  # so that every moment of an update is hit
        fault = faults.pop() if quick else chance.choice(FAULTS)
        console.print(f"{fault} after update {len(run.updates())}", highlight=False)
        if strike(run, fault, chance):
            report.faults[str(fault)] += 1
        await_update(run, report, str(fault))
    run.process.send_signal(signal.SIGINT)
    run.process.wait(PATIENCE)
    report.left_over += run.left_over()
    return report


def strike(run: Run, fault: Fault, chance: random.Random) -> bool:
    """Whether there was somebody to strike."""
    found = run.processes(fault.victim)
    if not found:
        return False
    victim = chance.choice(found)
    try:
        if not fault.stop:
            victim.kill()
            return True
        victim.suspend()
        time.sleep(chance.uniform(0.5, 8.0))
        victim.resume()
    except psutil.NoSuchProcess:
        return False
    return True


def await_update(run: Run, report: Report, cause: str) -> None:
    """Until the run, which may have to be resumed for it, has made another update."""
    time.sleep(0.5)
    before, deadline = len(run.updates()), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if run.ended:
            report.left_over += run.left_over()
            run.start()
            report.resumed += 1
            before, deadline = -1, time.monotonic() + PATIENCE
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
    trained = read_state(latest(run.directory)).intake.next_group
    there = {(key.group, key.member) for key in copies}
    updates = run.updates()
    return {
        "faults": sum(report.faults.values()),
        "by_kind": dict(report.faults),
        "resumed": report.resumed,
        "updates": len(updates),
        "episodes": len(copies),
        "lost": sum((group, member) not in there for group in range(trained) for member in range(GROUP_SIZE)),
        "trained_twice": sum(count - 1 for count in copies.values()),
        "too_old": sum(line["token_age_max"] > MAX_STALENESS for line in updates),
        "missing_updates": sorted(set(range(1, len(updates) + 1)) ^ {line["update"] for line in updates}),
        "left_over": len(report.left_over) + len(run.shared_memory()),
        "stuck": len(report.stuck),
    }


def table(figures: dict) -> Table:
    made = Table("", "", title="Chaos", show_header=False)
    for name, value in figures.items():
        made.add_row(
            name.replace("_", " "),
            ", ".join(f"{kind}: {count}" for kind, count in value.items()) if isinstance(value, dict) else str(value),
        )
    return made


if __name__ == "__main__":
    main()
