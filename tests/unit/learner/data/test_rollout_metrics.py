"""Measures of trajectories."""

import msgspec
import numpy as np

from learner.data.evaluation_metrics import evaluation_metrics
from learner.data.rollout_metrics import rollout_metrics
from protocol.arrays import FLOAT32, INT32, UINT8, pack
from protocol.messages import ControlEvent
from telemetry.metrics_schema import undocumented_names
from tests.fixtures.controller import PLAN
from tests.fixtures.learner import random_group, random_turn


def test_scores_are_means_over_the_episodes_that_report_them():
    played = [
        msgspec.structs.replace(episode, scores=scores)
        for episode, scores in zip(
            random_group(np.random.default_rng(0), 300, members=3),
            ({"price": 1.0}, {"price": 0.5}, {}),
            strict=True,
        )
    ]
    for metrics in (rollout_metrics(played), evaluation_metrics(played, PLAN, 0)):
        assert metrics["score/price"] == 0.75 and undocumented_names(list(metrics)) == []


def test_tokens_without_a_log_prob_are_counted_and_those_of_an_intervention_are_not():
    rng = np.random.default_rng(1)
    played = random_group(rng, 300, members=1)[0]
    lost = {
        "log_probs": pack([-1.0, np.nan, np.nan], FLOAT32),
        "mask": pack([1, 0, 0], UINT8),
        "tokens": pack([7, 8, 9], INT32),
    }
    cut = ControlEvent("intervene", "settled", 2, 0.0, 0.1)
    keep = ControlEvent("keep", "stalled", 3, 0.0, 0.1)
    turns = [random_turn(rng, 300, **lost, events=events) for events in ([], [keep], [cut])]
    assert (
        rollout_metrics([msgspec.structs.replace(played, turns=turns)])["unscored_tokens"]
        == 2 + 2 + 1
    )
