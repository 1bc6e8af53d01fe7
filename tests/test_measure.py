"""What is measured on trajectories."""

import msgspec
import numpy as np
from learner_fixtures import random_group, random_turn

from learner.measure import evaluation_metrics, rollout_metrics
from protocol.arrays import FLOAT32, UINT8, pack
from telemetry.fields import undocumented


def test_scores_are_means_over_the_episodes_that_report_them():
    played = [
        msgspec.structs.replace(episode, scores=scores)
        for episode, scores in zip(
            random_group(np.random.default_rng(0), 300, members=3), ({"price": 1.0}, {"price": 0.5}, {}), strict=True
        )
    ]
    for metrics in (rollout_metrics(played), evaluation_metrics(played)):
        assert metrics["score/price"] == 0.75 and undocumented(list(metrics)) == []


def test_tokens_without_a_log_prob_are_counted():
    played = random_group(np.random.default_rng(0), 300, members=3)
    assert rollout_metrics(played)["unscored_tokens"] == 0
    turn = random_turn(np.random.default_rng(1), 300, log_probs=pack([-1.0, np.nan, np.nan], FLOAT32), mask=pack([1, 1, 0], UINT8))
    assert rollout_metrics([msgspec.structs.replace(played[0], turns=[turn])])["unscored_tokens"] == 1
