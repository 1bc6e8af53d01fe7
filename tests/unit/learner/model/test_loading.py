"""A policy that is filled once it is sharded is the one that is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from learner.model.loading import build_skeleton
from learner.model.policy import attention_of, load_policy
from learner.model.sharding import Policy, full_state_dict
from learner.ranks import Ranks
from tests.fixtures.families import FAMILIES, saved
from tests.fixtures.learner import join_alone

SHARDED = [family for family in FAMILIES if family != "gpt2"]
"""All but one whose layers ranks cannot share."""


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with join_alone() as made:
        yield made


@pytest.mark.parametrize("family", SHARDED)
def test_a_filled_skeleton_equals_the_policy_that_is_loaded(
    family: str, tmp_path: Path, ranks: Ranks
) -> None:
    """Weights, buffers and logits; of those, too, whose files have other names than the model."""
    torch.manual_seed(0)
    directory = saved(FAMILIES[family](), tmp_path)
    skeleton = build_skeleton(directory, ranks)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    Policy(skeleton, ranks)
    loaded = load_policy(directory)
    assert attention_of(skeleton) == attention_of(loaded)
    weights = dict(full_state_dict(skeleton))
    for name, weight in full_state_dict(loaded):
        assert torch.equal(weights.pop(name), weight)
    assert not weights
    for (name, buffer), (_, expected) in zip(
        skeleton.named_buffers(), loaded.named_buffers(), strict=True
    ):
        assert torch.equal(buffer, expected), name
