"""Advantages against slow references, and what must hold of them whatever the group."""

import math
from difflib import SequenceMatcher
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import GigpoAlgorithm, LearnerSection
from learner.advantages import (
    ESTIMATORS,
    NEEDS_CRITIC,
    EpisodeReturns,
    GroupReturns,
    estimate_advantages,
)
from learner.advantages.gigpo import cluster_anchors, step_advantages
from tests.fixtures.learner import make_algorithm, make_loss

ANCHORS = ["a", "b", "c"]


@st.composite
def episodes(draw) -> EpisodeReturns:
    turns = draw(st.integers(1, 6))
    rewards = draw(
        st.lists(st.sampled_from([0.0, 0.0, 1.0, 10.0, -0.5]), min_size=turns, max_size=turns)
    )
    valid = draw(st.lists(st.booleans(), min_size=turns, max_size=turns))
    anchors = draw(st.lists(st.sampled_from(ANCHORS), min_size=turns, max_size=turns))
    values, log_ratios = (
        draw(st.lists(st.floats(low, high), min_size=turns, max_size=turns))
        for low, high in ((-5, 5), (-2, 2))
    )
    return EpisodeReturns(
        np.array(rewards),
        np.array(valid),
        anchors,
        np.array(values),
        np.array(log_ratios),
        draw(st.booleans()),
    )


groups = st.lists(episodes(), min_size=1, max_size=6).map(GroupReturns)
settings = st.builds(
    SimpleNamespace,
    normalize_advantages=st.booleans(),
    baseline_weighting=st.sampled_from(["turn", "episode"]),
    discount=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    step_weight=st.sampled_from([0.0, 1.0, 2.5]),
    invalid_penalty=st.sampled_from([0.0, 0.1, 1.0]),
    gae_lambda=st.sampled_from([0.0, 0.9, 1.0]),
    loss=st.sampled_from(["tis", "vtrace"]),
    vtrace_rho=st.sampled_from([0.5, 1.0, 2.0]),
    vtrace_c=st.sampled_from([0.5, 1.0]),
)


def standardize_within(value: float, values: list[float], normalise: bool) -> float:
    """The textbook: value less the mean, over the sample standard deviation + 1e-6."""
    mean = math.fsum(values) / len(values)
    if not normalise:
        return value - mean
    variance = (
        math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) if len(values) > 1 else 0.0
    )
    return (value - mean) / (math.sqrt(variance) + 1e-6)


def grpo_reference(group: GroupReturns, s: SimpleNamespace) -> list[list[float]]:
    returns = [math.fsum(e.rewards) for e in group.episodes]
    compared = (
        returns
        if s.baseline_weighting == "episode"
        else [r for r, e in zip(returns, group.episodes, strict=True) for _ in e.rewards]
    )
    validity = [float(v) for e in group.episodes for v in e.valid]
    return [
        [
            standardize_within(returns[i], compared, s.normalize_advantages)
            + s.invalid_penalty * standardize_within(float(valid), validity, False)
            for valid in e.valid
        ]
        for i, e in enumerate(group.episodes)
    ]


def rloo_reference(group: GroupReturns, s: SimpleNamespace) -> list[list[float]]:
    returns = [math.fsum(e.rewards) for e in group.episodes]
    validity = [float(v) for e in group.episodes for v in e.valid]
    times = [len(e.rewards) if s.baseline_weighting == "turn" else 1 for e in group.episodes]
    others = [
        [r for j, r in enumerate(returns) for _ in range(times[j]) if j != i]
        for i in range(len(returns))
    ]
    return [
        [
            (returns[i] - math.fsum(others[i]) / len(others[i]) if others[i] else 0.0)
            + s.invalid_penalty * standardize_within(float(valid), validity, False)
            for valid in e.valid
        ]
        for i, e in enumerate(group.episodes)
    ]


def reinforce_pp_reference(
    batch: list[GroupReturns], s: SimpleNamespace, baseline: bool
) -> list[list[list[float]]]:
    values = []
    for group in batch:
        returns = [math.fsum(e.rewards) for e in group.episodes]
        counted = [
            r
            for r, e in zip(returns, group.episodes, strict=True)
            for _ in range(len(e.rewards) if s.baseline_weighting == "turn" else 1)
        ]
        values.append(
            [standardize_within(r, counted, False) for r in returns] if baseline else returns
        )
    times = [
        [len(e.rewards) if s.baseline_weighting == "turn" else 1 for e in group.episodes]
        for group in batch
    ]
    compared = [
        v
        for of, ns in zip(values, times, strict=True)
        for v, n in zip(of, ns, strict=True)
        for _ in range(n)
    ]
    out = []
    for group, of in zip(batch, values, strict=True):
        validity = [float(v) for e in group.episodes for v in e.valid]
        penalties = [
            [s.invalid_penalty * standardize_within(float(v), validity, False) for v in e.valid]
            for e in group.episodes
        ]
        out.append(
            [
                [standardize_within(v, compared, True) + p for p in ps]
                for v, ps in zip(of, penalties, strict=True)
            ]
        )
    return out


def gigpo_reference(group: GroupReturns, s: SimpleNamespace) -> list[list[float]]:
    to_go = {
        (i, k): math.fsum(s.discount ** (j - k) * e.rewards[j] for j in range(k, len(e.rewards)))
        for i, e in enumerate(group.episodes)
        for k in range(len(e.rewards))
    }
    advantages = grpo_reference(group, s)
    for (i, k), value in to_go.items():
        same = [
            v
            for (n, m), v in to_go.items()
            if group.episodes[n].anchors[m] == group.episodes[i].anchors[k]
        ]
        advantages[i][k] += s.step_weight * standardize_within(value, same, s.normalize_advantages)
    return advantages


def gae_reference(e: EpisodeReturns, s: SimpleNamespace) -> list[float]:
    """The sum of (discount lambda)^i times the errors of the values to come."""
    values = [*e.values, e.values[-1] if e.cut_off else 0.0]
    errors = [r + s.discount * values[k + 1] - values[k] for k, r in enumerate(e.rewards)]
    return [
        math.fsum((s.discount * s.gae_lambda) ** (j - k) * errors[j] for j in range(k, len(errors)))
        for k in range(len(errors))
    ]


def vtrace_reference(e: EpisodeReturns, s: SimpleNamespace) -> list[float]:
    """V_k + sum of discount^(j - k) c_k ... c_(j - 1) rho_j times the errors to come (eq. 1)."""
    values = [*e.values, e.values[-1] if e.cut_off else 0.0]
    rho, c = (
        [min(bound, math.exp(log_r)) for log_r in e.log_ratios]
        for bound in (s.vtrace_rho, s.vtrace_c)
    )
    errors = [r + s.discount * values[k + 1] - values[k] for k, r in enumerate(e.rewards)]
    return [
        values[k]
        + math.fsum(
            s.discount ** (j - k) * math.prod(c[k:j]) * rho[j] * errors[j]
            for j in range(k, len(errors))
        )
        for k in range(len(errors))
    ]


def valued_reference(batch: list[GroupReturns], s: SimpleNamespace) -> list[list[list[float]]]:
    by_episode = []
    for e in (e for group in batch for e in group.episodes):
        if s.loss == "vtrace":
            targets = [*vtrace_reference(e, s), e.values[-1] if e.cut_off else 0.0]
            by_episode.append(
                [r + s.discount * targets[k + 1] - e.values[k] for k, r in enumerate(e.rewards)]
            )
        else:
            by_episode.append(gae_reference(e, s))
    compared = [value for values in by_episode for value in values]
    found = iter(by_episode)
    out = []
    for group in batch:
        validity = [float(v) for e in group.episodes for v in e.valid]
        out.append(
            [
                [
                    (standardize_within(value, compared, True) if s.normalize_advantages else value)
                    + s.invalid_penalty * standardize_within(float(valid), validity, False)
                    for value, valid in zip(next(found), e.valid, strict=True)
                ]
                for e in group.episodes
            ]
        )
    return out


def by_group(reference):
    return lambda batch, s: [reference(group, s) for group in batch]


REFERENCES = {
    "grpo": by_group(grpo_reference),
    "gigpo": by_group(gigpo_reference),
    "rloo": by_group(rloo_reference),
    "reinforce++": partial(reinforce_pp_reference, baseline=False),
    "reinforce++-baseline": partial(reinforce_pp_reference, baseline=True),
    "gae": valued_reference,
}


@pytest.mark.parametrize("name", ESTIMATORS)
@given(batch=st.lists(groups, min_size=1, max_size=3), settings=settings)
def test_estimator_equals_slow_reference(name, batch, settings):
    loss = settings.loss if name in NEEDS_CRITIC else "tis"
    learner = LearnerSection(
        algorithm=make_algorithm(name, **vars(settings)), loss=make_loss(loss, **vars(settings))
    )
    computed = estimate_advantages(batch, learner)
    expected = REFERENCES[name](batch, settings)
    for group, by_group in zip(computed, expected, strict=True):
        for episode, by_episode in zip(group, by_group, strict=True):
            assert episode.dtype == np.float64
            np.testing.assert_allclose(episode, by_episode, rtol=1e-5, atol=1e-6)


def estimated(name: str, group: GroupReturns, **settings: object) -> list[np.ndarray]:
    """Estimate the advantages of a batch of one group."""
    (advantages,) = ESTIMATORS[name]([group], make_algorithm(name, **settings))
    return advantages


def episode(rewards, anchors=None, valid=None) -> EpisodeReturns:
    turns = len(rewards)
    anchors = anchors or list(map(str, range(turns)))
    return EpisodeReturns(
        np.array(rewards, dtype=np.float64),
        np.array(valid or [True] * turns),
        anchors,
        values=np.zeros(turns),
    )


def test_equal_returns_give_exactly_zero():
    # 10 * 0.95**k three times: their mean is not exactly their value, and 1e-15 / 1e-6 would be a
    # gradient.
    group = GroupReturns([episode([0, 0, 0, 10]) for _ in range(3)])
    for name in set(ESTIMATORS) - NEEDS_CRITIC:
        assert all((a == 0).all() for a in estimated(name, group))


def test_failures_that_differ_in_validity_alone_stay_small():
    group = GroupReturns([episode([0, 0], valid=[True, False]), episode([0, 0]), episode([0])])
    for name in ESTIMATORS:
        first, second, third = estimated(
            name, group, normalize_advantages=True, invalid_penalty=0.1
        )
        np.testing.assert_allclose(
            np.concatenate([first, second, third]), [0.02, -0.08, 0.02, 0.02, 0.02], atol=1e-12
        )


def test_anchor_seen_by_one_turn_gives_no_step_advantage():
    group = GroupReturns(
        [episode([0, 10], anchors=["a", "b"]), episode([0, 0], anchors=["c", "d"])]
    )
    assert all(not a.any() for a in step_advantages(group, GigpoAlgorithm()))


def test_step_advantage_prefers_the_turn_nearer_to_the_reward():
    group = GroupReturns([episode([0, 0, 10], anchors=["a", "a", "b"])])
    (advantages,) = step_advantages(group, GigpoAlgorithm(normalize_advantages=False, discount=0.5))
    np.testing.assert_allclose(advantages, [-1.25, 1.25, 0.0])


ALIKE = (
    "a page of ten words that says this and that",
    "a page of ten words that says this and more",
    "something else",
)


def test_turns_that_saw_nearly_the_same_are_compared_where_that_is_asked_for():
    group = GroupReturns(
        [
            episode([0, 10], anchors=[ALIKE[0], ALIKE[2]]),
            episode([0, 0], anchors=[ALIKE[1], ALIKE[2] * 2]),
        ]
    )
    near, far = (
        step_advantages(
            group, GigpoAlgorithm(normalize_advantages=False, discount=1.0, anchor_similarity=s)
        )
        for s in (0.9, 0.91)
    )
    np.testing.assert_allclose(near, [[5, 0], [-5, 0]])
    np.testing.assert_allclose(far, 0)


@given(
    anchors=st.lists(st.lists(st.sampled_from("abc"), max_size=6).map(" ".join)),
    similarity=st.sampled_from([0.3, 0.7, 1.0]),
)
def test_a_cluster_is_of_what_is_similar_to_its_first(anchors, similarity):
    leaders = cluster_anchors(anchors, similarity)
    assert set(leaders) == set(anchors)
    for anchor, leader in leaders.items():
        before = anchors[: anchors.index(anchor) + 1]
        leading = [other for other in before if leaders[other] == other]
        alike = [
            o
            for o in leading
            if o == anchor
            or SequenceMatcher(None, anchor.split(), o.split(), autojunk=False).ratio()
            >= similarity
        ]
        assert leader == (alike[0] if similarity < 1 else anchor)


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce++", "reinforce++-baseline"])
@given(group=groups, settings=settings, shift=st.sampled_from([-3.0, 5.0]))
def test_a_constant_added_to_every_return_changes_nothing(name, group, settings, shift):
    moved = GroupReturns(
        [
            EpisodeReturns(np.append(e.rewards[:-1], e.rewards[-1] + shift), e.valid, e.anchors)
            for e in group.episodes
        ]
    )
    for before, after in zip(
        estimated(name, group, **vars(settings)),
        estimated(name, moved, **vars(settings)),
        strict=True,
    ):
        np.testing.assert_allclose(before, after, atol=1e-6)
