"""Measure tokens a second of the learner's whole update, beside other ways to make it.

These are the bare loop that anybody would write, packed sequences, and TRL.

`python -m benchmarks.learner [--model DIR] [--tokens N] [--repeats N] [--rows] [--quick]
[--json FILE]`

With TRL installed (pip install -e '.[trl]'), beside its GRPO trainer, too, on the same turns,
without generation (benchmarks/trl_loop.py).

The turns are demonstrations of the default environment, with the lengths that they have; all
conditions see as many tokens, prompts included, make as many optimizer steps and use as many
threads, take turns, and the median counts. One thread's seconds are those of the processor, so that
other work on the machine counts little. The bare loops have dense rows: every turn as long as
their mean, so that there is nothing to pad. `bare_ratio` is the update's speed over that of the
faster bare loop.

`merged_ratio` is how many more conversations of ten turns the learner trains on in a second than if
every turn were a row of its own. The policy is the one above. `merged_ratio_deep` is that of random
weights in the shape of SmolLM2-135M, with its layers and its vocabulary cut to two fifths: what
layers and head cost beside each other stays. Both arms make as many optimizer steps.
`shared_ratio` and `shared_ratio_deep` are how many more groups of eight such conversations, with
one prompt of 1,000 tokens and 105 after it, it trains on in one mini-batch when that prompt is
computed once. `--rows` measures these four alone.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from benchmarks import trl_loop
from config import LearnerSection
from config.resolve import resolve
from learner.data.batching import collate, minibatches, pack_by_length
from learner.data.rows import Row, merge_turns, row_length
from learner.data.samples import TrainingSample
from learner.model.policy import load_policy, log_probs
from learner.update import Updater
from learner.warm_start.demonstrations import TurnTokenizer, play_demonstrations
from learner.warm_start.tiny import build_tiny
from protocol.prompting import load_prompter

DEEP = Qwen3Config(
    hidden_size=576,
    intermediate_size=1_536,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    num_hidden_layers=12,  # of 30
    vocab_size=19_660,  # of 49,152
    tie_word_embeddings=True,
)
"""A shape that is deep enough for what only the last layer does to count little."""

WHOLE_UPDATE = "the learner's whole update"
FIGURES = (
    "bare_ratio",
    "merged_ratio",
    "merged_ratio_deep",
    "shared_ratio",
    "shared_ratio_deep",
    "peak_gflops",
    "share_of_peak",
)

EPISODES = 200
"""Number of demonstrations from which the turns are taken."""

Step = Callable[[PreTrainedModel, Sequence[TrainingSample]], torch.Tensor]
"""The loss of a few turns."""
Run = Callable[[], None]
"""An update. What it needs has been prepared before, which is not timed."""


def transformers_dense(model: PreTrainedModel, turns: Sequence[TrainingSample]) -> torch.Tensor:
    """Do what a tutorial does: the model's own forward pass, and the loss of every token."""
    ids = torch.from_numpy(np.stack([tokens_of(turn) for turn in turns]))
    return functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def ours_dense(model: PreTrainedModel, turns: Sequence[TrainingSample]) -> torch.Tensor:
    """The learner's forward pass, and the loss of the tokens that it trains on."""
    log_pi, _ = log_probs(model, collate([[turn] for turn in turns]), 1.0)
    return -log_pi.mean()


def packed(model: PreTrainedModel, turns: Sequence[TrainingSample]) -> torch.Tensor:
    """Compute the losses of all turns in one row, each seeing itself alone.

    It takes a block mask, and positions that begin anew.
    """
    ids = torch.from_numpy(np.concatenate([tokens_of(turn) for turn in turns]))[None]
    turn = torch.repeat_interleave(
        torch.arange(len(turns)), torch.tensor([turn.length for turn in turns])
    )
    positions = torch.cat([torch.arange(turn.length) for turn in turns])[None]
    mask = (
        (turn[:, None] == turn[None]) & torch.ones(len(turn), len(turn), dtype=torch.bool).tril()
    )[None, None]
    logits = model(ids, position_ids=positions, attention_mask=mask).logits[0]
    return functional.cross_entropy(logits[:-1], ids[0, 1:])


def tokens_of(turn: TrainingSample) -> np.ndarray:
    """Return prompt and response, int64 [length]."""
    return np.concatenate([turn.prompt, turn.response]).astype(np.int64)


def bare(
    step: Step, settings: LearnerSection, model: PreTrainedModel, turns: Sequence[TrainingSample]
) -> Run:
    """Make the bare loop: forward, backward, optimizer step.

    It makes as many steps as the learner, of micro-batches as large as the learner's.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def run() -> None:
        rows = merge_turns(turns)
        for part in minibatches(rows, settings.minibatches, np.random.default_rng(0)):
            for some in pack_by_length(part, row_length, settings.microbatch_tokens):
                step(model, [turn for row in some for turn in row]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def update(
    settings: LearnerSection,
    model: PreTrainedModel,
    turns: Sequence[TrainingSample],
    *,
    shares_prompts: bool = True,
) -> Run:
    """The learner's whole update."""
    updater = Updater(model, settings, 1.0, seed=0)
    updater.policy.shares_prompts = shares_prompts and updater.policy.shares_prompts

    def run() -> None:
        updater.update(turns)

    return run


def dense(turns: Sequence[TrainingSample]) -> list[TrainingSample]:
    """As many turns of the mean length, in which as many tokens are trained on."""
    length = round(statistics.mean(turn.length for turn in turns))
    response = round(statistics.mean(len(turn.response) for turn in turns))
    tokens = np.resize(
        np.concatenate([tokens_of(turn) for turn in turns]), (len(turns), length)
    ).astype(np.int32)
    ones = np.ones(response)
    return [
        TrainingSample(
            row[:-response],
            row[-response:],
            ones > 0,
            -ones.astype(np.float32),
            ones.astype(np.int32),
            advantage=1.0,
        )
        for row in tokens
    ]


def turns_of(directory: Path, tokens: int) -> list[TrainingSample]:
    """Demonstrated turns of so many tokens together, as if a policy had played them."""
    rng = np.random.default_rng(0)
    tokenizer = TurnTokenizer(load_prompter(directory))
    found: list[TrainingSample] = []
    for episode in play_demonstrations(resolve(), EPISODES):
        for turn in tokenizer.tokenize_turns(episode):
            if sum(other.length for other in found) >= tokens:
                return found
            log_mu = -rng.exponential(0.2, len(turn.response)).astype(np.float32)
            found.append(replace(turn, log_mu=log_mu, advantage=float(rng.normal())))
    return found


class Talk(NamedTuple):
    """The tokens of a conversation."""

    prompt: int  # before the first response
    side: int  # of each side in turn, after that
    turns: int


LONG = Talk(prompt=200, side=50, turns=10)
SHORT = Talk(prompt=1_000, side=21, turns=3)  # as with tools that are described at length

GROUP = 8
"""Conversations that have the same prompt, where it is shared."""


def conversations(
    talk: Talk, episodes: int, vocabulary: int, *, group: int = 1
) -> list[TrainingSample]:
    """Turns of conversations: each prompt is all before it, and an answer of the environment.

    As many as a `group` begin with the same prompt.
    """
    rng = np.random.default_rng(0)
    ones = np.ones(talk.side)
    found = []
    prompt = np.zeros(0, dtype=np.int32)
    for episode in range(episodes):
        if episode % group == 0:
            prompt = rng.integers(1, vocabulary, talk.prompt, dtype=np.int32)
        rest = rng.integers(1, vocabulary, 2 * talk.turns * talk.side, dtype=np.int32)
        tokens = np.concatenate([prompt, rest])
        for turn in range(talk.turns):
            start = talk.prompt + 2 * turn * talk.side
            found.append(
                TrainingSample(
                    tokens[:start],
                    tokens[start : start + talk.side],
                    ones > 0,
                    -ones.astype(np.float32),
                    ones.astype(np.int32),
                    advantage=float(rng.normal()),
                )
            )
    return found


def build_deep() -> PreTrainedModel:
    """Build a model of the shape DEEP, float32, with random weights."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        DEEP, dtype=torch.float32, attn_implementation="sdpa"
    ).train()


def count_flops(model: PreTrainedModel, rows: Sequence[Row]) -> float:
    """Count the operations of an update on all rows that the textbook asks for.

    Six for each weight of a layer and each token, as many for each weight of the head and each
    trained token, and six for each of a layer's attended pairs of tokens and each of their numbers
    (causal, so half of all pairs). What the learner leaves out is counted, too.
    """
    config = model.config
    layers: Any = model.base_model.layers  # of unknown type
    weights = sum(weight.numel() for weight in layers.parameters() if weight.ndim == 2)
    head_size = getattr(config, "head_dim", None)
    heads = config.hidden_size
    if head_size:
        heads = config.num_attention_heads * head_size
    tokens = sum(map(row_length, rows))
    trained = sum(turn.trained_tokens for row in rows for turn in row)
    pairs = sum(row_length(row) ** 2 for row in rows)
    head = config.vocab_size * config.hidden_size
    return 6.0 * (weights * tokens + head * trained + len(layers) * heads * pairs)


def read_clock() -> float:
    """Read seconds: of the processor where one thread computes, else of the wall."""
    if torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def measure_peak(size: int = 1024, repeats: int = 10) -> float:
    """Measure the operations a second of products of large float32 matrices: the best of some."""
    left = torch.randn(size, size)
    right = torch.randn(size, size)
    best_s = math.inf
    for _ in range(repeats):
        started = read_clock()
        torch.matmul(left, right)
        best_s = min(best_s, read_clock() - started)
    return 2.0 * size**3 / best_s


class Condition(NamedTuple):
    """A way to make an update, and the turns that it takes."""

    prepare: Callable[[PreTrainedModel, Sequence[TrainingSample]], Run]
    turns: Sequence[TrainingSample]
    tokens: int  # of the turns that it takes, or what else speeds are told in

    @staticmethod
    def of(
        prepare: Callable[..., Run], *arguments: object, turns: Sequence[TrainingSample]
    ) -> Condition:
        """All the turns."""
        return Condition(
            functools.partial(prepare, *arguments), turns, sum(turn.length for turn in turns)
        )


def measure(
    conditions: dict[str, Condition], model: PreTrainedModel, repeats: int
) -> dict[str, float]:
    """Median of `tokens` a second of each."""
    speeds: dict[str, list[float]] = {name: [] for name in conditions}
    for repeat in range(repeats + 1):
        for name, condition in conditions.items():
            run = condition.prepare(copy.deepcopy(model), condition.turns)
            started = read_clock()
            run()
            if repeat:  # the first round warms up
                speeds[name].append(condition.tokens / (read_clock() - started))
    return {name: statistics.median(values) for name, values in speeds.items()}


def measure_updates(
    directory: Path, model: PreTrainedModel, settings: LearnerSection, tokens: int, repeats: int
) -> dict[str, float]:
    """Measure tokens/s of each way to make an update, print them, and return all figures."""
    turns = turns_of(directory, tokens)
    conditions = {
        "transformers' forward, dense rows": Condition.of(
            bare, transformers_dense, settings, turns=dense(turns)
        ),
        "learner's forward, dense rows": Condition.of(
            bare, ours_dense, settings, turns=dense(turns)
        ),
        "transformers' forward, turns packed into one row": Condition.of(
            bare, packed, settings, turns=turns
        ),
        WHOLE_UPDATE: Condition.of(update, settings, turns=turns),
    }
    if find_spec("trl"):
        loop = functools.partial(trl_loop.prepare, directory, settings)
        conditions["TRL's GRPO trainer, without generation"] = Condition(
            loop, turns, trl_loop.tokens(settings, turns)
        )
    speeds = measure(conditions, model, repeats)
    peak = measure_peak()
    fastest_loop = max(list(speeds.values())[:2])
    table = Table(
        f"{len(turns)} turns, {sum(turn.length for turn in turns):,} tokens",
        "tokens/s",
        "ratio to the faster bare loop",
        "share of peak",
    )
    shares = {}
    for name, speed in speeds.items():
        condition = conditions[name]
        flops = count_flops(model, [[turn] for turn in condition.turns]) / condition.tokens
        shares[name] = speed * flops / peak
        table.add_row(name, f"{speed:,.0f}", f"{speed / fastest_loop:.2f}", f"{shares[name]:.0%}")
    Console().print(table)
    return {
        **speeds,
        "bare_ratio": speeds[WHOLE_UPDATE] / fastest_loop,
        "peak_gflops": peak / 1e9,
        "share_of_peak": shares[WHOLE_UPDATE],
    }


def measure_rows(
    policies: dict[str, tuple[PreTrainedModel, int]], settings: LearnerSection, repeats: int
) -> dict[str, float]:
    """Measure conversations merged into rows beside a row each turn, and print both.

    `policies`: model and number of conversations, by the name of their ratio, which is returned.
    """
    table = Table(
        Column("ten turns", no_wrap=True),
        "episodes/s, merged",
        "a row each turn",
        "ratio",
        "of tokens",
        "of textbook operations",
    )
    ratios = {}
    for name, (model, episodes) in policies.items():
        talk = conversations(LONG, episodes, model.config.vocab_size)
        # As many optimizer steps for all, and there are no more mini-batches than rows.
        same = msgspec.structs.replace(settings, minibatches=min(settings.minibatches, episodes))
        conditions = {
            "merged": Condition(functools.partial(update, same), talk, episodes),
            # Backwards, no prompt goes on where the last turn ended: nothing is merged.
            "alone": Condition(functools.partial(update, same), talk[::-1], episodes),
        }
        speeds = measure(conditions, model, repeats)
        merged = merge_turns(talk)
        alone = merge_turns(talk[::-1])
        ratios[name] = speeds["merged"] / speeds["alone"]
        table.add_row(
            name,
            f"{speeds['merged']:.3g}",
            f"{speeds['alone']:.3g}",
            f"{ratios[name]:.2f}",
            f"{sum(map(row_length, alone)) / sum(map(row_length, merged)):.2f}",
            f"{count_flops(model, alone) / count_flops(model, merged):.2f}",
        )
    Console().print(table)
    return ratios


def measure_shared_prompts(
    models: dict[str, PreTrainedModel], settings: LearnerSection, repeats: int
) -> dict[str, float]:
    """Measure groups whose prompt is computed once beside one of each row, and print both.

    `models`: by the name of their ratio, which is returned.
    """
    table = Table(
        Column(f"groups of {GROUP}", no_wrap=True), "groups/s, shared", "a prompt each row", "ratio"
    )
    ratios = {}
    groups = 2
    whole = msgspec.structs.replace(settings, minibatches=1)  # others would take groups apart
    for name, model in models.items():
        turns = conversations(SHORT, groups * GROUP, model.config.vocab_size, group=GROUP)
        conditions = {
            "shared": Condition(functools.partial(update, whole), turns, groups),
            "alone": Condition(
                functools.partial(update, whole, shares_prompts=False), turns, groups
            ),
        }
        speeds = measure(conditions, model, repeats)
        ratios[name] = speeds["shared"] / speeds["alone"]
        table.add_row(
            name, f"{speeds['shared']:.3g}", f"{speeds['alone']:.3g}", f"{ratios[name]:.2f}"
        )
    Console().print(table)
    return ratios


def parse_arguments() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learner", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="a Hugging Face directory (default: the tiny policy, random weights)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=60_000,
        help="of the turns of an update, prompts included (default %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="rounds of all conditions (default %(default)s)"
    )
    parser.add_argument("--rows", action="store_true", help="only conversations in merged rows")
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, of 8,000 tokens, no deep policy"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    if options.quick:
        options.tokens = 8_000
        options.repeats = 1
    return options


def main() -> None:
    options = parse_arguments()
    config = resolve()
    torch.set_num_threads(config.learner.threads or torch.get_num_threads())
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.model or Path(temporary) / "policy"
        if not options.model:
            build_tiny(
                directory,
                config.model.tiny,
                (turn for turns in play_demonstrations(config, EPISODES) for turn in turns),
                seed=0,
            )
        model = load_policy(directory)
        results: dict[str, float] = {}
        if not options.rows:
            results |= measure_updates(
                directory, model, config.learner, options.tokens, options.repeats
            )
    policies = {"merged_ratio": (model, max(1, options.tokens // 7_500))}
    models = {"shared_ratio": model}
    if not options.model and not options.quick:
        deep = build_deep()
        policies["merged_ratio_deep"] = (deep, 1)
        models["shared_ratio_deep"] = deep
    results |= measure_rows(policies, config.learner, options.repeats)
    results |= measure_shared_prompts(models, config.learner, options.repeats)
    for name in FIGURES:
        if name in results:
            Console().print(f"{name} {results[name]:.3f}", highlight=False)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
