"""Advantages of recorded episodes, for whoever shows them."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from config import LearnerSection
from learner.data.episode_analysis import turn_advantages
from protocol.messages import StopReason
from tests.fixtures.learner import random_group


@pytest.mark.parametrize("truncated", ["train", "mask", "penalize"])
def test_every_turn_has_its_advantage_whatever_is_done_with_truncated_ones(truncated: str):
    group = random_group(np.random.default_rng(0), 300)
    cut_off = msgspec.structs.replace(group[0].turns[0].kept, stop=StopReason.LENGTH)
    group[0].turns[0] = msgspec.structs.replace(group[0].turns[0], kept=cut_off)
    advantages = turn_advantages(group, LearnerSection(truncated=truncated))
    assert [len(advantages[episode.key]) for episode in group] == [
        len(episode.turns) for episode in group
    ]
