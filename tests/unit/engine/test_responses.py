"""Responses of an engine, as the controller reads them."""

from __future__ import annotations

from math import isnan

import msgspec
import pytest

from engine.responses import read_generation
from protocol.messages import Span


def answer(**choice: object) -> bytes:
    return msgspec.json.encode(
        {"choices": [{"token_ids": [4, 5], "finish_reason": "stop", **choice}]}
    )


def test_a_log_prob_that_the_engine_does_not_have_is_nan() -> None:
    generation = read_generation(
        answer(logprobs={"content": [{"logprob": -0.5}, {"logprob": -9999.0}]})
    )
    assert generation.log_probs[0] == -0.5
    assert isnan(generation.log_probs[1])


def test_spans_are_numbers_and_vllms_first_label_is_minus_one() -> None:
    logprobs = {"content": [{"logprob": -0.5}, {"logprob": -0.5}]}
    versions = [
        {"version": "default", "start": 0, "end": 1},
        {"version": "7", "start": 1, "end": 2},
    ]
    assert read_generation(answer(logprobs=logprobs, weight_versions=versions)).spans == [
        Span(0, 1, -1),
        Span(1, 2, 7),
    ]


def test_an_answer_with_missing_log_probs_is_refused() -> None:
    with pytest.raises(ValueError, match="2 tokens with 1 log-probs"):
        read_generation(answer(logprobs={"content": [{"logprob": -0.5}]}))
