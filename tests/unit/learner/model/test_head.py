"""The head a chunk of positions at a time computes what the textbook's formulas say."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CohereConfig, Gemma2Config, GraniteConfig, Qwen3Config

from learner.model.head import LogitShape, compute_logits, read_logit_shape, token_log_probs

WIDTH = 5


@dataclass(frozen=True)
class Case:
    """Sizes and options of one computation."""

    positions: int
    vocabulary: int
    chunk_logits: int
    bias: bool
    entropy_gradient: bool
    shape: LogitShape
    seed: int


CASES = st.builds(
    Case,
    positions=st.integers(0, 9),
    vocabulary=st.integers(1, 12),
    chunk_logits=st.integers(1, 120),
    bias=st.booleans(),
    entropy_gradient=st.booleans(),
    shape=st.builds(
        LogitShape,
        scale=st.sampled_from([1.0, 0.0625, 8.0]),
        cap=st.sampled_from([None, 0.5, 30.0]),
        temperature=st.sampled_from([1.0, 0.7, 2.0]),
    ),
    seed=st.integers(0, 2**16),
)


def random_inputs(case: Case, dtype: torch.dtype) -> tuple[nn.Linear, Tensor, Tensor]:
    """A head, hidden states and targets."""
    torch.manual_seed(case.seed)
    head = nn.Linear(WIDTH, case.vocabulary, bias=case.bias, dtype=dtype)
    hidden = torch.randn(case.positions, WIDTH, dtype=dtype, requires_grad=True)
    targets = torch.randint(case.vocabulary, (case.positions,))
    return head, hidden, targets


def textbook_logits(head: nn.Linear, hidden: Tensor, shape: LogitShape) -> Tensor:
    logits = head(hidden) * shape.scale
    if shape.cap is not None:
        logits = shape.cap * torch.tanh(logits / shape.cap)
    return logits / shape.temperature


def textbook(
    head: nn.Linear, hidden: Tensor, targets: Tensor, shape: LogitShape
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies by their definitions."""
    p = torch.softmax(textbook_logits(head, hidden, shape), -1)
    entropy = -torch.where(p > 0, p * p.log(), 0.0).sum(-1)
    return p[torch.arange(len(targets)), targets].log(), entropy


def gradients(head: nn.Linear, hidden: Tensor, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [hidden, *head.parameters()]))


@given(CASES)
def test_token_log_probs_of_any_chunks_equal_the_textbook(case: Case) -> None:
    """Values and gradients, of log-probabilities and of the entropy where it has one."""
    head, hidden, targets = random_inputs(case, torch.float64)
    log_p, entropy = token_log_probs(
        head,
        hidden,
        targets,
        case.shape,
        entropy_gradient=case.entropy_gradient,
        chunk_logits=case.chunk_logits,
    )
    expected_log_p, expected_entropy = textbook(head, hidden, targets, case.shape)
    torch.testing.assert_close(log_p, expected_log_p, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-7, atol=1e-9)
    assert not entropy.requires_grad or case.entropy_gradient
    weights = torch.randn(2, case.positions, dtype=torch.float64)
    loss = (weights[0] * log_p).sum()
    expected = (weights[0] * expected_log_p).sum()
    if case.entropy_gradient:
        loss = loss + (weights[1] * entropy).sum()
        expected = expected + (weights[1] * expected_entropy).sum()
    for ours, theirs in zip(
        gradients(head, hidden, loss), gradients(head, hidden, expected), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@given(CASES)
def test_compute_logits_equals_the_textbook_without_a_gradient(case: Case) -> None:
    head, hidden, _ = random_inputs(case, torch.float32)
    logits = compute_logits(head, hidden, case.shape)
    torch.testing.assert_close(logits, textbook_logits(head, hidden, case.shape).detach())
    assert not logits.requires_grad


@pytest.mark.parametrize("chunk_logits", [7, 10**6])
def test_token_log_probs_of_a_frozen_head_have_the_hidden_gradient(chunk_logits: int) -> None:
    """As with LoRA, whose head is not trained."""
    case = Case(6, 7, chunk_logits, True, True, LogitShape(cap=2.0), 0)
    head, hidden, targets = random_inputs(case, torch.float64)
    head.requires_grad_(False)
    log_p, _ = token_log_probs(head, hidden, targets, case.shape, chunk_logits=chunk_logits)
    expected, _ = textbook(head, hidden, targets, case.shape)
    (ours,) = torch.autograd.grad(log_p.sum(), [hidden])
    (theirs,) = torch.autograd.grad(expected.sum(), [hidden])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (Qwen3Config(), LogitShape()),
        (GraniteConfig(logits_scaling=8.0), LogitShape(scale=0.125)),
        (CohereConfig(logit_scale=0.25), LogitShape(scale=0.25)),
        (Gemma2Config(final_logit_softcapping=30.0), LogitShape(cap=30.0)),
    ],
    ids=["qwen3", "granite", "cohere", "gemma2"],
)
def test_read_logit_shape_knows_the_families(config, shape: LogitShape) -> None:
    assert read_logit_shape(config) == shape
    assert read_logit_shape(config, 0.7) == shape._replace(temperature=0.7)
