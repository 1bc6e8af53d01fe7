"""The policy as one module: shards, precision and compilation change no more than rounding."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from learner.data.batching import MicroBatch
from learner.model.sharding import Policy
from learner.model.slices import full_tensor
from learner.ranks import Ranks
from tests.fixtures.families import FAMILIES, SHAPE
from tests.fixtures.learner import join_alone

ONE_LAYER = SHAPE | {"num_hidden_layers": 1}
MODELS = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**ONE_LAYER)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**ONE_LAYER)),
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with join_alone() as made:
        yield made


def random_batch(rows: int, columns: int) -> MicroBatch:
    """Five trained positions in rows of random tokens."""
    generator = torch.Generator().manual_seed(rows)
    zeros = torch.zeros(5)
    return MicroBatch(
        prefix=torch.zeros(0, dtype=torch.int64),
        tokens=torch.randint(2, 50, (rows, columns), generator=generator),
        rows=torch.randint(rows, (5,), generator=generator),
        columns=torch.randint(3, columns, (5,), generator=generator),
        turn=torch.zeros(5, dtype=torch.int64),
        turns=1,
        log_mu=zeros,
        log_prox=None,
        advantage=zeros,
        age=torch.zeros(5, dtype=torch.int64),
        padding=0,
    )


def log_probs_and_gradients(policy: Policy, model: PreTrainedModel) -> list[torch.Tensor]:
    """Those of two batches of different lengths."""
    found = []
    for rows, columns in ((2, 9), (3, 13)):
        log_pi, _ = policy(random_batch(rows, columns), 0.7)
        log_pi.sum().backward()
        found.append(log_pi.detach())
    gradients = [full_tensor(parameter.grad) for parameter in model.parameters()]
    return found + gradients


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_compiled_layers_compute_what_the_others_do(
    family: str, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With learner.compile: log-probabilities and gradients, whatever the length.

    Graphs are captured as always, and computed without a C++ compiler, which takes minutes.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.manual_seed(0)
    models = [MODELS[family]()]
    models.append(copy.deepcopy(models[0]))
    plain, compiled = (
        log_probs_and_gradients(Policy(model, ranks, compiled=is_compiled), model)
        for model, is_compiled in zip(models, (False, True), strict=True)
    )
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "made"),
    [
        ("learner.ranks", {"ranks": Ranks(rank=0, size=2)}),
        ("learner.compile", {"ranks": Ranks(), "compiled": True}),
    ],
)
def test_a_model_without_a_list_of_layers_is_refused(setting: str, made: dict) -> None:
    with pytest.raises(ValueError, match=rf"{setting}: .*GPT2LMHeadModel"):
        Policy(FAMILIES["gpt2"](), **made)
