"""Run the default job across hosts, on real vLLM; for root, on Linux.

The hosts are network namespaces with addresses of their own.

`python -m benchmarks.network [--updates N] [--cache DIR] [--quick] [--json FILE]` (a quarter of an
hour)

Supervisor, controller and engine are here, the learner is on a host of its own, 32 actors on each
of two others. Four runs: all of it here; across hosts; across hosts that are far away (20 ms of
delay and 1 % loss each way); and so with a host of actors that is cut off for 30 s after the first
update, and another one that vanishes after the second.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from benchmarks.hosts import FAR, HERE, Host, NotPermitted, away, hosts, kill
from protocol.lifetime import dying_with_parent
from protocol.security import make_keys
from supervisor.endpoints import free_port
from supervisor.process import ROOT
from supervisor.recording import EPISODES_DIR, read_episodes
from telemetry.analysis.compare_runs import seconds_per_update
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics, select_kind

ACTORS = 32
"""On each of two hosts."""
CUT_OFF = 30.0
"""Seconds."""
CONDITIONS = {
    "all here": (False, None, False),
    "hosts": (True, None, False),
    "far": (True, FAR, False),
    "far, faults": (True, FAR, True),
}
"""Name -> whether there are hosts, how far they are, whether something happens to them."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.network", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--updates", type=int, default=6, help="of each run (default %(default)s)")
    parser.add_argument(
        "--cache",
        default="",
        help="where warm-started policies are kept (default: run.cache_dir's)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two updates of a policy that knows nothing, near and far",
    )
    parser.add_argument("--json", type=Path, help="write the table's figures to this file, too")
    options = parser.parse_args()
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # as Ctrl-C: what is set up here is taken down
    console = Console()
    rows = {}
    for name, (across, far, faults) in CONDITIONS.items():
        if options.quick and name not in ("hosts", "far"):
            continue
        console.print(f"{name} ...", highlight=False)
        with tempfile.TemporaryDirectory() as directory:
            try:
                rows[name] = run(Path(directory), settings_of(options), across, far, faults)
            except NotPermitted as why:
                sys.exit(f"error: {why}")
    table = Table("", *next(iter(rows.values())))
    for name, row in rows.items():
        table.add_row(
            name,
            *(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()),
        )
    Console(width=max(120, console.width)).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    found = {
        "run.max_updates": str(2 if options.quick else options.updates),
        "run.max_minutes": "60",
        "eval.every": "0",
        "eval.episodes": "16",
    }
    if options.quick:
        found |= {
            "warm_start.episodes": "0",
            "learner.groups_per_update": "2",
            "learner.group_size": "4",
            "eval.episodes": "4",
        }
    return found | ({"run.cache_dir": options.cache} if options.cache else {})


def run(
    directory: Path,
    settings: dict[str, str],
    across: bool,
    far: tuple[float, float] | None,
    faults: bool,
) -> dict[str, object]:
    """Make the run; its figures. Ends the benchmark, with the run's output, if it fails."""
    path = directory / "run"
    with ExitStack() as stack:
        joined: list[tuple[Host, subprocess.Popen]] = []
        settings = settings | {"run.dir": str(path), "actor.count": str(2 * ACTORS)}
        if across:
            *playing, learning = stack.enter_context(hosts(3, far))
            port = free_port(HERE)
            keys = directory / "keys"
            make_keys(keys, "actors")
            settings |= away(learning, port, keys, directory / "weights")
            joined = [(host, host.join(port, keys / "actors", ACTORS, stack)) for host in playing]
        command = [
            sys.executable,
            "run.py",
            *(f"--{name}={value}" for name, value in settings.items()),
        ]
        training = stack.enter_context(
            subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                preexec_fn=dying_with_parent(),
            )
        )
        stack.callback(training.kill)
        if faults:
            befall(joined, path / METRICS_FILE, training)
        output, _ = training.communicate()
        if training.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{output[-3000:]}")
    return figures(path)


def befall(
    joined: list[tuple[Host, subprocess.Popen]], metrics: Path, training: subprocess.Popen
) -> None:
    """Cut the first host off for a while after the first update.

    The second one vanishes after the second.
    """
    (first, _), (_, actors) = joined
    until(1, metrics, training)
    first.cut_off(True)
    time.sleep(CUT_OFF)
    first.cut_off(False)
    until(2, metrics, training)
    kill(actors)


def until(updates: int, metrics: Path, training: subprocess.Popen) -> None:
    """Wait until that many updates are made, or the run has ended."""
    while training.poll() is None and len(select_kind(read_metrics(metrics), "update")) < updates:
        time.sleep(0.2)


def figures(path: Path) -> dict[str, object]:
    records = read_metrics(path / METRICS_FILE)
    updates = select_kind(records, "update")
    summary = json.loads((path / "summary.json").read_text())
    copies = Counter(episode.key for _, episode in read_episodes(path / EPISODES_DIR))
    return {
        "updates": len(updates),
        "s/update": seconds_per_update(records),
        "engine idle, %": 100
        * mean(line["idle_share_engine"] for line in updates if "idle_share_engine" in line),
        "actors lost": (path / "logs" / "controller.log").read_text().count("was silent"),
        "dropped": sum(summary["dropped"].values()),
        "twice in the log": sum(count > 1 for count in copies.values()),
        "oldest token": max(line["token_age_max"] for line in updates),
    }


if __name__ == "__main__":
    main()
