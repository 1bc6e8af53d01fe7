"""Measure how fast trajectories get from an actor process to the learner's.

Beside it are bare ZeroMQ, pickled objects, and Ray's object store.

`python -m benchmarks.transport [--repeats N] [--quick] [--json FILE]` (some minutes, on an idle
machine)

One process sends, another one takes in, over tcp on this machine, with 16 episodes on their way; an
episode is forgotten when its acknowledgement comes. All ways take turns; speeds are medians, ratios
medians of those within a round. CPU time, of all threads of a process, says more on a machine that
does other work, too. The rows:

    this project        protocol.codec, zmq.asyncio, and the learner's own intake: decoded, into
                        its group, into the log, acknowledged
    raw, asyncio        the same bytes over zmq.asyncio, acknowledged by eight bytes: nothing is
                        encoded, decoded or kept
    raw, blocking       the same without asyncio
    pickle, asyncio     the same objects pickled and unpickled, over zmq.asyncio; no log
    Ray's object store  ray.put in one Ray actor, ray.get in another, no log (pip install -e
                        '.[ray]'); CPU without Ray's own processes

`raw_ratio` is the project's speed over that of raw, asyncio, for episodes of 8 turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import transport_paths as paths
from benchmarks.transport_paths import Size, Speed, Work
from learner.data.episode_log import EpisodeLog
from protocol.codec import decode, encode

SIZES = {"realistic": Size(8, 400, 60), "large": Size(50, 2_000, 500)}
EPISODES = {"realistic": 10_000, "large": 400}
OURS = "this project"
RAW = "raw, asyncio"
RAY = "Ray's object store"
WAYS: dict[str, Callable[[Work], Speed]] = {
    OURS: lambda work: paths.run(paths.our_learner, paths.our_actor, work),
    RAW: lambda work: paths.run(paths.raw_learner, paths.raw_actor, work),
    "raw, blocking": lambda work: paths.run(paths.blocking_learner, paths.blocking_actor, work),
    "pickle, asyncio": lambda work: paths.run(paths.pickle_learner, paths.pickle_actor, work),
}


def ways() -> dict[str, Callable[[Work], Speed]]:
    """With Ray where it is installed."""
    if not find_spec("ray"):
        return WAYS
    from benchmarks import transport_ray

    return {**WAYS, RAY: transport_ray.run}


def measure(share: float, repeats: int, console: Console) -> dict[str, dict[str, list[Speed]]]:
    """Size -> way -> a speed for each round."""
    found: dict[str, dict[str, list[Speed]]] = {name: {way: [] for way in ways()} for name in SIZES}
    for repeat in range(repeats):
        for name, size in SIZES.items():
            console.print(f"round {repeat + 1} of {repeats}, {size}", highlight=False)
            for way, run in ways().items():
                episodes = int(share * EPISODES[name]) // paths.GROUP_SIZE * paths.GROUP_SIZE
                with tempfile.TemporaryDirectory() as directory:
                    found[name][way].append(run(Work(size, episodes, Path(directory))))
    return found


def stages(size: Size, seconds: float = 0.3) -> dict[str, float]:
    """Measure the CPU seconds that an episode takes in each stage of its own.

    The process does nothing else.
    """
    episode = paths.trajectory(size, 0)
    frame = encode(episode)
    with tempfile.TemporaryDirectory() as directory:
        log = EpisodeLog.open(Path(directory) / "episodes")
        found = {
            "encode": _each(lambda: encode(episode), seconds),
            "decode": _each(lambda: decode(frame), seconds),
            "log": _each(lambda: log.append([frame]), seconds),
            "of which checksum": _each(lambda: zlib.crc32(frame), seconds),
        }
        log.close()
    return found


def _each(function: Callable[[], object], seconds: float) -> float:
    started = time.process_time()
    calls = 0
    while time.process_time() - started < seconds:
        function()
        calls += 1
    return (time.process_time() - started) / calls


def report(found: dict[str, dict[str, list[Speed]]], console: Console) -> dict[str, float]:
    """Print the tables; the figures under their names."""
    results = {}
    for name, speeds in found.items():
        size = SIZES[name]
        megabytes = len(encode(paths.trajectory(size, 0))) / 1e6
        table = Table(
            "",
            "episodes/s",
            "MB/s",
            "of raw, asyncio",
            "CPU us, actor",
            "CPU us, learner",
            title=f"{size}, {megabytes:.3g} MB",
        )
        for way, rounds in speeds.items():
            episodes, actor, learner = (
                statistics.median(column) for column in zip(*rounds, strict=True)
            )
            ratio = statistics.median(
                mine.episodes / raw.episodes for mine, raw in zip(rounds, speeds[RAW], strict=True)
            )
            table.add_row(
                way,
                f"{episodes:,.0f}",
                f"{episodes * megabytes:,.0f}",
                f"{ratio:.2f}",
                f"{1e6 * actor:,.0f}",
                f"{1e6 * learner:,.0f}",
            )
            results |= {
                f"{way}, {name}": episodes,
                f"{way}, {name}, ratio": ratio,
                f"{way}, {name}, actor us": 1e6 * actor,
                f"{way}, {name}, learner us": 1e6 * learner,
            }
        console.print(table)
        spent = stages(size)
        console.print(
            "alone, CPU us an episode: "
            + ", ".join(f"{stage} {1e6 * value:,.0f}" for stage, value in spent.items()),
            highlight=False,
        )
        results |= {f"{stage}, {name}, us": 1e6 * value for stage, value in spent.items()}
    results["raw_ratio"] = results[f"{OURS}, realistic, ratio"]
    console.print(
        f"raw_ratio {results['raw_ratio']:.3f}"
        + ("" if RAY in ways() else "; Ray is not measured: it is not installed"),
        highlight=False,
    )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transport", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--repeats", type=int, default=0, help="rounds of all ways (default 7, with --quick 1)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: a fifth of the episodes"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    console = Console()
    found = measure(
        0.2 if options.quick else 1.0, options.repeats or (1 if options.quick else 7), console
    )
    results = report(found, console)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
