"""What is measured on trajectories."""

import msgspec
import numpy as np
from learner_fixtures import random_group

from learner.measure import evaluation_metrics, rollout_metrics
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
