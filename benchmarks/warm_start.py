"""Measure tokens a second of the warm start's steps (gradients and optimizers).

They run on one core and on all, alone and beside another warm start, as in a sweep with `--slots
2`. Threads that wait for the others spin, which is OpenMP's default, or sleep.

`python -m benchmarks.warm_start` (three minutes, on an idle machine)
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from config.resolve import resolve
from learner.data.rows import Row, merge_turns, row_length
from learner.model.policy import load_policy
from learner.warm_start.demonstrations import TurnTokenizer, play_demonstrations
from learner.warm_start.tiny import build_tiny
from learner.warm_start.warm_start import draw_batches, imitate_batch, make_optimizers
from protocol.lifetime import dying_with_parent
from protocol.prompting import load_prompter
from supervisor.process import ROOT

EPISODES = 200
WARM_UP = 3
SECONDS = 12.0
AT_ONCE = 2


def main() -> None:
    if len(sys.argv) > 1:
        print(_tokens_per_second(Path(sys.argv[1]), int(sys.argv[2])))
        return
    cores = os.cpu_count() or 1
    ways = [(1, False), (cores, False), (cores, True)] if cores > 1 else [(1, False)]
    table = Table(
        "torch threads", "while they wait", "alone", "ratio", f"{AT_ONCE} at once, each", "ratio"
    )
    with tempfile.TemporaryDirectory() as directory:
        build_tiny(
            Path(directory),
            resolve().model.tiny,
            [turn for turns in _episodes() for turn in turns],
            seed=0,
        )
        measured = [
            [_beside(Path(directory), threads, sleeping, count) for count in (1, AT_ONCE)]
            for threads, sleeping in ways
        ]
    for (threads, sleeping), rates in zip(ways, measured, strict=True):
        cells = [
            text
            for rate, first in zip(rates, measured[0], strict=True)
            for text in (f"{rate:,.0f}", f"{rate / first:.2f}")
        ]
        table.add_row(
            str(threads), ("sleep" if sleeping else "spin") if threads > 1 else "", *cells
        )
    Console().print("warm start of the default policy, 2,048 tokens a step: tokens/s")
    Console().print(table)


def _beside(policy_dir: Path, threads: int, sleeping: bool, count: int) -> float:
    """Mean of `count` processes that begin together.

    The variable is read when OpenMP is loaded, hence processes.
    """
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if sleeping:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    command = [sys.executable, "-m", "benchmarks.warm_start", str(policy_dir), str(threads)]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=dying_with_parent(),
        )
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return float(np.mean([float(process.communicate()[0]) for process in processes]))


def _tokens_per_second(policy_dir: Path, threads: int) -> float:
    """Measure tokens a second over SECONDS, which begin when it is told to."""
    torch.set_num_threads(threads)
    model = load_policy(policy_dir)
    optimizers = make_optimizers(model, resolve().warm_start)
    batches = _batches(policy_dir)
    for batch in itertools.islice(batches, WARM_UP):
        imitate_batch(model, optimizers, batch)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    tokens = 0
    while time.perf_counter() - started < SECONDS:
        batch = next(batches)
        imitate_batch(model, optimizers, batch)
        tokens += sum(map(row_length, batch))
    return tokens / (time.perf_counter() - started)


def _batches(policy_dir: Path) -> Iterator[list[Row]]:
    tokenizer = TurnTokenizer(load_prompter(policy_dir))
    samples = [sample for turns in _episodes() for sample in tokenizer.tokenize_turns(turns)]
    rows = merge_turns(samples)
    return itertools.cycle(
        draw_batches(rows, resolve().warm_start.batch_tokens, 1.0, np.random.default_rng(0))
    )


def _episodes() -> list:
    return list(play_demonstrations(resolve(), EPISODES))


if __name__ == "__main__":
    main()
