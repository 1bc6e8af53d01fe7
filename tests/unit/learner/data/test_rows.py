"""Rows hold the turns of a conversation once, and nothing that is not its own."""

from itertools import chain, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner.data.batching import collate
from learner.data.rows import Row, merge_turns
from learner.data.samples import TrainingSample
from tests.fixtures.learner import random_conversation

VOCABULARY = 4
"""So few that prompts often begin alike by chance."""


@st.composite
def conversations(draw) -> list[TrainingSample]:
    """Turns of some conversations, some of which are broken off and begun anew."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kept = draw(st.lists(st.booleans(), min_size=1, max_size=4))
    turns = [random_conversation(rng, VOCABULARY, extends) for extends in kept]
    return list(chain(*turns))


def tokens_of(sample: TrainingSample) -> list[int]:
    return [*sample.prompt.tolist(), *sample.response.tolist()]


@given(conversations())
def test_merged_rows_hold_each_turn_once_and_in_order(samples):
    assert [id(sample) for row in merge_turns(samples) for sample in row] == list(map(id, samples))


@given(conversations())
def test_neighbors_share_a_row_exactly_if_the_prompt_goes_on(samples):
    firsts = {id(row[0]) for row in merge_turns(samples)}
    for before, after in pairwise(samples):
        tokens = tokens_of(before)
        goes_on = after.prompt[: len(tokens)].tolist() == tokens
        assert (id(after) not in firsts) == goes_on


@given(conversations())
def test_collated_rows_have_each_trained_token_at_its_place(samples):
    rows = merge_turns(samples)
    batch = collate(rows)
    found = batch.tokens[batch.rows, batch.columns].tolist()
    expected = [sample.response[sample.mask].tolist() for sample in samples]
    assert found == list(chain(*expected))
    assert batch.turn.tolist() == [i for i, part in enumerate(expected) for _ in part]
    assert batch.turns == len(samples)
    assert [tokens_of_row(row) for row in rows] == [
        tokens[: row[-1].length] for tokens, row in zip(batch.tokens.tolist(), rows, strict=True)
    ]


def tokens_of_row(row: Row) -> list[int]:
    return tokens_of(row[-1])
