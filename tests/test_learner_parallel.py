"""Several processes compute the gradient that one computes."""

import os
import signal

import numpy as np
import pytest
import torch
from learner_fixtures import TURNS, small_config

from learner.batching import Sample
from learner.parallel import ParallelGradients
from learner.tiny import random_model, train_tokenizer

SETTINGS = small_config().model


def a_model():
    return random_model(SETTINGS, train_tokenizer(SETTINGS.vocabulary, TURNS), seed=0)


def some_samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(count):
        prompt, response = (rng.integers(5, 300, size=int(rng.integers(3, 20)), dtype=np.int32) for _ in range(2))
        length = len(response)
        samples.append(Sample(prompt, response, np.ones(length, bool), np.zeros(length), np.zeros(length, np.int32), 1.0))
    return samples


@pytest.fixture(scope="module")
def pair():
    """A model whose gradients two processes compute."""
    model = a_model()
    with ParallelGradients(model, 2) as gradients:
        yield model, gradients


@pytest.mark.parametrize("count", [9, 1], ids=["both have work", "one has none"])
def test_two_processes_compute_the_gradient_of_one(pair, count):
    model, gradients = pair
    alone = a_model()
    with ParallelGradients(alone, 1) as single:
        expected = single(some_samples(count))
    assert gradients(some_samples(count)) == pytest.approx(expected, rel=1e-5)
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_a_helper_sees_the_steps_of_the_optimizer(pair):
    model, gradients = pair
    samples = some_samples(8)
    before = gradients(samples)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    stepped = gradients(samples)
    with ParallelGradients(model, 1) as single:
        assert single(samples) == pytest.approx(stepped, rel=1e-5)
    assert stepped < before


def test_a_dead_helper_is_an_error_that_names_the_setting():
    with ParallelGradients(a_model(), 2) as gradients:
        os.kill(gradients.pids[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"warm_start\.processes"):
            gradients(some_samples(4))
