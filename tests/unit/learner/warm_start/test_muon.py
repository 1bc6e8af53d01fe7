"""The warm start's optimizer."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.warm_start.muon import Muon, orthogonalize
from tests.fixtures.examples import scale_examples


@scale_examples(30)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 10**6))
def test_orthogonal_keeps_singular_vectors_and_brings_singular_values_near_one(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    strong = s > 0.05 * s[0]  # the iteration does not reach 1 for what is nearly 0
    inside = u.T @ orthogonalize(matrix) @ vh.T
    values = inside.diagonal()[strong]
    assert ((values > 0.5) & (values < 1.3)).all()
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 0.02


def test_muon_fits_a_linear_map():
    torch.manual_seed(0)
    target = torch.randn(6, 4)
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    optimizer = Muon([weight], lr=0.05)
    x = torch.randn(64, 4)
    first = ((x @ (weight - target).T) ** 2).mean().item()
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        optimizer.zero_grad()
        loss = ((x @ (weight - target).T) ** 2).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02 * first
