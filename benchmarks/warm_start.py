"""Tokens a second of the warm start's steps (gradients and optimizers) on one core, and on all of them.

`python -m benchmarks.warm_start` (half a minute, on an idle machine)
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from config import WarmStartSection
from learner.demonstrations import TurnTokenizer, demonstrations
from learner.policy import load_policy
from learner.samples import Sample
from learner.tiny import TURN_END, build_tiny
from learner.warm_start import imitation_step, make_optimizers, token_batches
from protocol.prompting import load_prompter
from supervisor.settings import resolve

EPISODES = 200
WARM_UP = 3
STEPS = 25


def main() -> None:
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as directory:
        policy, batches = _prepare(Path(directory) / "policy")
        measured = {
            f"{threads} torch thread{'s' * (threads > 1)}": _tokens_per_second(policy, batches, threads) for threads in sorted({1, cores})
        }
    table = Table("warm start of the default policy, 2,048 tokens a step", "tokens/s", "ratio")
    first = next(iter(measured.values()))
    for name, value in measured.items():
        table.add_row(name, f"{value:,.0f}", f"{value / first:.2f}")
    Console().print(table)


def _prepare(directory: Path) -> tuple[Path, list[list[Sample]]]:
    config = resolve()
    episodes = list(demonstrations(config, EPISODES))
    build_tiny(directory, config.model, [turn for turns in episodes for turn in turns], seed=0)
    tokenizer = TurnTokenizer(load_prompter(directory), TURN_END)
    samples = [sample for turns in episodes for sample in tokenizer.samples(turns)]
    return directory, list(token_batches(samples, config.warm_start.batch_tokens, 1.0, np.random.default_rng(0)))


def _tokens_per_second(policy: Path, batches: list[list[Sample]], threads: int) -> float:
    torch.set_num_threads(threads)
    model = load_policy(policy)
    optimizers = [optimizer for optimizer, _ in make_optimizers(model, WarmStartSection())]
    for batch in batches[:WARM_UP]:
        imitation_step(model, optimizers, batch)
    started = time.perf_counter()
    for batch in batches[WARM_UP : WARM_UP + STEPS]:
        imitation_step(model, optimizers, batch)
    seconds = time.perf_counter() - started
    return sum(sample.length for batch in batches[WARM_UP : WARM_UP + STEPS] for sample in batch) / seconds


if __name__ == "__main__":
    main()
