"""An update on merged rows is the update turn by turn, whatever conversations are like."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from config import LearnerSection
from config.control import ControlSection
from learner.advantages import ESTIMATORS
from learner.data.samples import TrainingSample, build_samples
from learner.losses import LOSSES
from learner.update import Updater
from learner.warm_start.tiny import build_random_model, train_tokenizer
from protocol.arrays import FLOAT32, INT32, UINT8, pack
from protocol.messages import ControlEvent, EpisodeKey, Span, StopReason, Trajectory, Turn
from tests.fixtures.families import SHAPE
from tests.fixtures.learner import TURNS, make_algorithm, make_loss, small_config
from tests.fixtures.messages import make_response, make_trajectory, make_turn

CONFIG = small_config()
VERSION = 2
"""Of the learner's weights; tokens are up to two versions older."""


class Shape(NamedTuple):
    """What a turn is like: tokens, and what became of it."""

    extends: bool  # its prompt begins with all tokens of the turn before
    added: int  # tokens of its prompt after those
    response: int
    masked: str  # which of the response's tokens are not trained on
    stop: StopReason
    rejected: int
    valid: bool


shapes = st.builds(
    Shape,
    extends=st.integers(0, 4).map(bool),
    added=st.sampled_from([0, 1, 3]),
    response=st.sampled_from([0, 1, 1, 4, 9]),
    masked=st.sampled_from(["none", "none", "some", "all"]),
    stop=st.sampled_from([StopReason.END, StopReason.END, StopReason.LENGTH]),
    rejected=st.integers(0, 2),
    valid=st.booleans(),
)
episodes = st.lists(shapes, min_size=1, max_size=4)
groups = st.tuples(
    st.sampled_from([1, 2, 60, 1_100]), st.booleans(), st.lists(episodes, min_size=2, max_size=3)
)
"""Tokens before the first turn, whether they are the same in all episodes, and these."""


@st.composite
def learner_settings(draw) -> LearnerSection:
    """Any loss, advantage estimator and reduction, with and without what is added to a loss."""
    loss = draw(st.sampled_from(sorted(LOSSES)))
    estimator = draw(st.sampled_from(sorted(ESTIMATORS)))
    if loss == "vtrace":  # which needs a value head
        estimator = "gae"
    return msgspec.structs.replace(
        CONFIG.learner,
        loss=make_loss(loss),
        algorithm=make_algorithm(estimator),
        loss_reduction=draw(st.sampled_from(["token", "turn", "constant"])),
        kl_coef=draw(st.sampled_from([0.0, 0.5])),
        entropy_coef=draw(st.sampled_from([0.0, 0.1])),
        truncated=draw(st.sampled_from(["train", "mask", "penalize"])),
        resampling=draw(st.sampled_from(["ignore", "weight"])),
        microbatch_tokens=draw(st.sampled_from([40, 4096])),
        minibatches=1,
    )


@pytest.fixture(scope="module", params=["the learner's forward pass", "the model's own"])
def model(request):
    torch.set_num_threads(1)
    if request.param == "the model's own":
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SHAPE | {"vocab_size": 300})).train()
    return build_random_model(CONFIG.model.tiny, train_tokenizer(CONFIG.model.tiny, TURNS), seed=0)


def play(rng: np.random.Generator, opening: np.ndarray, turns: list[Shape]) -> list[Turn]:
    """Make turns of such shapes, of random tokens, log-probs and rewards."""
    played = []
    history = opening
    for shape in turns:
        if not shape.extends:
            history = draw_tokens(rng, len(opening))
        prompt = np.concatenate([history, draw_tokens(rng, shape.added)])
        response = draw_tokens(rng, shape.response)
        played.append(build_turn(rng, shape, prompt, response))
        history = np.concatenate([prompt, response])
    return played


def draw_tokens(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(7, 300, count).astype(np.int32)


def build_turn(
    rng: np.random.Generator, shape: Shape, prompt: np.ndarray, response: np.ndarray
) -> Turn:
    """Make a turn whose last response was kept, after so many that stalled."""
    length = len(response)
    mask = np.ones(length)
    if shape.masked == "some":
        mask = rng.random(length) < 0.5
    elif shape.masked == "all":
        mask = np.zeros(length)
    cut = length // 2
    kept = make_response(
        length,
        tokens=pack(response, INT32),
        log_probs=pack(-rng.exponential(4.0, length), FLOAT32),
        mask=pack(mask, UINT8),
        spans=[Span(0, cut, 0), Span(cut, length, VERSION)],
        stop=shape.stop,
        eta=0.5,
    )
    stalled = ControlEvent("resample", "stalled", 0, value=0.0, threshold=0.5)
    rejected = msgspec.structs.replace(kept, events=[stalled])
    return make_turn(
        kept,
        prompt=pack(prompt, INT32),
        rejected=[rejected] * shape.rejected,
        reward=float(rng.integers(-1, 3)),
        valid=shape.valid,
        anchor="ab"[int(rng.integers(2))],
    )


def build_group(seed: int, drawn: tuple[int, bool, list[list[Shape]]]) -> list[Trajectory]:
    first, is_shared, episodes = drawn
    rng = np.random.default_rng(seed)
    openings = [draw_tokens(rng, first) for _ in episodes]
    if is_shared:
        openings = [openings[0]] * len(episodes)
    return [
        make_trajectory(EpisodeKey(0, member), turns=play(rng, opening, turns))
        for member, (opening, turns) in enumerate(zip(openings, episodes, strict=True))
    ]


def build_updater(model, settings: LearnerSection) -> Updater:
    """Make an updater whose value head, where it has one, tells states apart.

    So does the reference from the policy.
    """
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.2)
    updater = Updater(copy.deepcopy(model), settings, 0.8, seed=0, reference=reference)
    if updater.critic is not None:
        torch.manual_seed(0)
        torch.nn.init.normal_(updater.critic.head.weight, std=0.1)
    return updater


def train(updater: Updater, samples: list[TrainingSample]) -> tuple[dict[str, float], dict]:
    """Update on samples; return figures, and the gradient by parameter (none without a step)."""
    gradient: dict[str, Any] = {}
    updater.optimizer.register_step_pre_hook(
        lambda *_: gradient.update({n: p.grad for n, p in updater.model.named_parameters()})
    )
    return updater.update(samples), gradient


@pytest.mark.slow
@settings(max_examples=10)  # two updates each
@given(st.integers(0, 2**32), groups, learner_settings())
def test_merged_rows_train_as_turn_by_turn(model, seed, drawn, learner):
    """Advantages, gradient and figures of all are those of turns that are computed one by one.

    Backwards, a prompt goes on where the turn before it ended only if that one says nothing new.
    """
    played = [build_group(seed, drawn)]
    merged = build_updater(model, learner)
    alone = build_updater(model, learner)
    control = ControlSection()
    samples = build_samples(played, VERSION, learner, control, merged.annotate)
    expected = build_samples(
        played, VERSION, learner, control, lambda turns: [alone.annotate([t])[0] for t in turns]
    )
    for name in ("advantage", "value", "target", "log_ratio"):
        np.testing.assert_allclose(
            [getattr(sample, name) for sample in samples],
            [getattr(sample, name) for sample in expected],
            rtol=1e-3,
            atol=1e-4,
            err_msg=name,
        )
    figures, gradient = train(merged, samples)
    expected_figures, expected_gradient = train(alone, expected[::-1])
    for name in ("padding_share", "turns_per_row"):  # of other rows
        del figures[name], expected_figures[name]
    assert figures == pytest.approx(expected_figures, rel=1e-3, abs=1e-4)
    assert gradient.keys() == expected_gradient.keys()
    for name, values in gradient.items():
        torch.testing.assert_close(values, expected_gradient[name], rtol=1e-3, atol=1e-5)
