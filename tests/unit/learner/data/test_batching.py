"""From trajectories to micro-batches: nothing is lost, nothing masked gets in."""

import itertools
from collections import Counter
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ControlSection, LearnerSection
from learner.advantages import ESTIMATORS
from learner.data.batching import (
    COPIES_PER_TOKEN,
    MICROBATCH_OVERHEAD_TOKENS,
    SHARING_OVERHEAD_TOKENS,
    collate,
    microbatches,
    minibatches,
    pack_by_length,
    pack_rows,
)
from learner.data.samples import TrainingSample, build_samples
from protocol.arrays import FLOAT32, INT32, UINT8, pack, unpack
from protocol.messages import DropReason, Span, StopReason
from tests.fixtures.learner import make_algorithm, random_group, random_turn

VOCABULARY = 50


@st.composite
def samples(draw) -> TrainingSample:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    length = draw(st.integers(1, 9))
    return TrainingSample(
        prompt=rng.integers(1, VOCABULARY, draw(st.integers(1, 30)), dtype=np.int32),
        response=rng.integers(1, VOCABULARY, length, dtype=np.int32),
        mask=rng.random(length) < 0.7,
        log_mu=rng.normal(size=length).astype(np.float32),
        age=rng.integers(0, 3, length, dtype=np.int32),
        advantage=draw(st.sampled_from([0.0, 1.0, -2.0])),
    )


def replace_turn(group, **changes):
    """The group with its very first turn made anew."""
    first = group[0]
    turn = random_turn(np.random.default_rng(5), VOCABULARY, **changes)
    return [msgspec.structs.replace(first, turns=[turn, *first.turns[1:]]), *group[1:]]


@st.composite
def groups_of_samples(draw) -> list[TrainingSample]:
    """Samples of which some begin with the same prompt, as episodes of a group do."""
    prompts = [
        np.arange(length, dtype=np.int32) for length in draw(st.lists(st.integers(1, 800)))
    ] or [np.arange(1, dtype=np.int32)]
    drawn = draw(st.lists(st.tuples(samples(), st.sampled_from(prompts)), min_size=1, max_size=12))
    return [replace(sample, prompt=prompt) for sample, prompt in drawn]


@given(st.lists(samples(), min_size=1, max_size=12) | groups_of_samples(), st.integers(8, 2_000))
def test_microbatches_hold_every_trained_token_once(batch, budget):
    seen = []
    for micro in microbatches([[sample] for sample in batch], budget, shares_prompts=True):
        copies = len(micro.tokens) * (len(micro.prefix) // COPIES_PER_TOKEN)
        size = len(micro.prefix) + copies + micro.tokens.numel()
        assert size <= budget or len(micro.tokens) == 1
        picked = micro.tokens[micro.rows, micro.columns]
        seen += zip(
            picked.tolist(),
            micro.log_mu.tolist(),
            micro.age.tolist(),
            micro.advantage.tolist(),
            strict=True,
        )
    expected = [
        (int(s.response[t]), float(s.log_mu[t]), int(s.age[t]), s.advantage)
        for s in batch
        if s.advantage
        for t in np.flatnonzero(s.mask)
    ]
    assert sorted(seen) == sorted(expected)


@given(groups_of_samples(), st.integers(8, 2_000))
def test_prompts_that_rows_share_are_computed_once_where_that_saves(batch, budget):
    rows = [[sample] for sample in batch]
    found = list(pack_rows(rows, budget, shares_prompts=True))
    assert sorted(i for part in found for i in part.indices) == list(range(len(rows)))
    for part in found:
        micro = collate([rows[i] for i in part.indices], part.shared)
        for i, row in zip(part.indices, micro.tokens, strict=True):
            tokens = np.concatenate([micro.prefix.numpy(), row.numpy()])[: batch[i].length]
            np.testing.assert_array_equal(
                tokens, np.concatenate([batch[i].prompt, batch[i].response])
            )
    alike = Counter(len(sample.prompt) for sample in batch)
    for part in found:
        length = len(batch[part.indices[0]].prompt)
        saves = (alike[length] - 1) * (length - 1) > SHARING_OVERHEAD_TOKENS
        assert part.shared == (saves and len(part.indices) > 1) * (length - 1)
    assert not any(part.shared for part in pack_rows(rows, budget))


@given(st.lists(st.integers(1, 300), max_size=7), st.integers(8, 600))
def test_no_other_parts_of_the_items_in_order_have_less_padding(lengths, budget):
    found = list(pack_by_length(lengths, lambda length: length, budget))
    assert [length for part in found for length in part] == sorted(lengths)
    ordered = sorted(lengths)
    others = []
    for cuts in itertools.product([False, True], repeat=max(0, len(lengths) - 1)):
        bounds = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(lengths)]
        parts = [ordered[a:b] for a, b in itertools.pairwise(bounds) if a < b]
        if all(len(part) * part[-1] <= budget or len(part) == 1 for part in parts):
            others.append(sum(len(part) * part[-1] + MICROBATCH_OVERHEAD_TOKENS for part in parts))
    assert sum(len(part) * part[-1] + MICROBATCH_OVERHEAD_TOKENS for part in found) == min(others)


@given(st.lists(samples(), min_size=1, max_size=6))
def test_collate_pads_on_the_right(batch):
    micro = collate([[sample] for sample in batch])
    for row, sample in zip(micro.tokens.numpy(), batch, strict=True):
        np.testing.assert_array_equal(
            row[: sample.length], np.concatenate([sample.prompt, sample.response])
        )
        assert not row[sample.length :].any()
    assert micro.padding == micro.tokens.numel() - sum(sample.length for sample in batch)


def test_minibatches_are_a_partition_and_follow_the_seed():
    rng = np.random.default_rng(0)
    turns = build_samples([random_group(rng, VOCABULARY, members=8)], 0, LearnerSection())
    parts = minibatches(turns, 3, np.random.default_rng(1))
    again = minibatches(turns, 3, np.random.default_rng(1))
    assert sorted(id(s) for part in parts for s in part) == sorted(map(id, turns))
    assert [list(map(id, part)) for part in parts] == [list(map(id, part)) for part in again]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_minibatches_than_samples_leave_none_empty():
    turns = build_samples(
        [random_group(np.random.default_rng(0), VOCABULARY, members=2)], 0, LearnerSection()
    )
    assert all(minibatches(turns, 100, np.random.default_rng(0)))


def test_age_is_counted_token_by_token():
    group = random_group(np.random.default_rng(0), VOCABULARY, versions=(3, 5))
    for sample in build_samples([group], 6, LearnerSection()):
        half = len(sample.response) // 2
        assert set(sample.age[:half]) == {3} and set(sample.age[half:]) == {1}


def test_tokens_of_weights_that_a_crash_has_lost_count_as_new():
    group = random_group(np.random.default_rng(0), VOCABULARY, versions=(7,))
    assert all(not sample.age.any() for sample in build_samples([group], 6, LearnerSection()))


def test_dropped_episodes_leave_no_sample():
    group = random_group(np.random.default_rng(0), VOCABULARY)
    dropped = msgspec.structs.replace(group[0], drop_reason=DropReason.ENV_ERROR)
    assert len(build_samples([[dropped, *group[1:]]], 0, LearnerSection())) == sum(
        len(e.turns) for e in group[1:]
    )


def test_log_prob_that_is_not_finite_is_not_trained_on():
    tokens = pack([1, 2, 3], INT32)
    log_probs = pack([-1.0, float("nan"), float("-inf")], FLOAT32)
    group = replace_turn(
        random_group(np.random.default_rng(0), VOCABULARY),
        tokens=tokens,
        log_probs=log_probs,
        mask=pack([1, 1, 1], UINT8),
        spans=[Span(0, 3, 0)],
    )
    assert build_samples([group], 0, LearnerSection())[0].mask.tolist() == [True, False, False]


@pytest.mark.parametrize("changes", [{"mask": b"\1"}, {"spans": []}, {"spans": [Span(0, 1, 0)]}])
def test_turn_that_does_not_fit_together_is_named(changes):
    group = replace_turn(random_group(np.random.default_rng(0), VOCABULARY), **changes)
    with pytest.raises(ValueError, match=r"episode t0\.0, turn 1"):
        build_samples([group], 0, LearnerSection())


def test_prompt_and_response_arrive_unchanged():
    group = random_group(np.random.default_rng(0), VOCABULARY)
    turn = group[0].turns[0]
    sample = build_samples([group], 0, LearnerSection())[0]
    np.testing.assert_array_equal(sample.prompt, unpack(turn.prompt, INT32))
    np.testing.assert_array_equal(sample.response, unpack(turn.kept.tokens, INT32))


def test_turns_without_a_valid_action_are_left_out_in_mode_void():
    group = random_group(np.random.default_rng(0), VOCABULARY, members=12)
    turns = [turn for episode in group for turn in episode.turns]
    assert 0 < sum(turn.valid for turn in turns) < len(turns)
    kept = build_samples([group], 0, LearnerSection(), ControlSection(mode="void"))
    whole = build_samples([group], 0, LearnerSection())
    valid = [sample for sample, turn in zip(whole, turns, strict=True) if turn.valid]
    assert [(s.response.tolist(), s.advantage) for s in kept] == [
        (s.response.tolist(), s.advantage) for s in valid
    ]


def cut_off_first(group):
    """The group with the response of its very first turn cut off by the budget."""
    first = group[0]
    kept = msgspec.structs.replace(first.turns[0].kept, stop=StopReason.LENGTH)
    turns = [msgspec.structs.replace(first.turns[0], kept=kept), *first.turns[1:]]
    return [msgspec.structs.replace(first, turns=turns), *group[1:]]


def test_masked_turns_that_the_budget_cut_off_train_nothing_and_change_no_other():
    group = cut_off_first(random_group(np.random.default_rng(0), 300))
    trained, masked = (
        build_samples([group], 0, LearnerSection(truncated=name)) for name in ("train", "mask")
    )
    assert trained[0].trained_tokens and not masked[0].trained_tokens
    assert [s.advantage for s in masked] == [s.advantage for s in trained]
    assert [s.trained_tokens for s in masked[1:]] == [s.trained_tokens for s in trained[1:]]


@pytest.mark.parametrize("algorithm", ESTIMATORS)
def test_penalized_turns_that_the_budget_cut_off_are_below_the_others(algorithm: str):
    """The penalty is the difference to other turns, and centered over those of the group."""
    groups = [random_group(np.random.default_rng(seed), 300, members=4) for seed in (0, 1)]
    groups[0] = cut_off_first(groups[0])
    trained, penalized = (
        build_samples(
            groups,
            0,
            LearnerSection(
                algorithm=make_algorithm(algorithm), truncated=name, truncated_penalty=0.5
            ),
        )
        for name in ("train", "penalize")
    )
    turns = sum(len(episode.turns) for episode in groups[0])
    change = np.array([s.advantage for s in penalized]) - [s.advantage for s in trained]
    np.testing.assert_allclose(change[0], -0.5 + 0.5 / turns)
    np.testing.assert_allclose(change[1:turns], 0.5 / turns)
    np.testing.assert_allclose(change[turns:], 0.0, atol=1e-12)
