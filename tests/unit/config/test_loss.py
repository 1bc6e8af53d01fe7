"""Each loss has bounds of its own size."""

from __future__ import annotations

import pytest

from config.resolve import resolve


@pytest.mark.parametrize(
    ("loss", "bounds"), [("ppo", (0.2, 0.2)), ("cispo", (0.2, 0.2)), ("gspo", (3e-4, 4e-4))]
)
def test_clipped_loss_has_the_bounds_of_its_paper(loss: str, bounds: tuple[float, float]) -> None:
    """GSPO's ratio hardly moves: with the bounds of PPO nothing would ever be clipped."""
    chosen = resolve(None, {"learner.loss": loss}).learner.loss
    assert (chosen.clip_low, chosen.clip_high) == bounds
