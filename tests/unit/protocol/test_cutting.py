"""Responses end where whoever reads them stops."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.arrays import INT32, pack
from protocol.cutting import Cut, cut_response, find_cut
from protocol.messages import ControlEvent, Span, StopReason
from protocol.validation import AdmissionWindow, Limits, validate_trajectory
from tests.fixtures.messages import make_response, make_trajectory, make_turn


def decode(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


def encode(text: str) -> list[int]:
    return list(map(ord, text))


@pytest.mark.parametrize(
    ("text", "limit", "stops", "cut"),
    [
        ("abc", None, [], Cut(3)),
        ("abc", 3, [], Cut(3)),
        ("abc", 2, [], Cut(2, is_limit=True)),
        ("a.b.c", None, ["."], Cut(2, ".")),
        ("one two", None, ["wo", "ne"], Cut(3, "ne")),
        ("one two", 2, ["ne"], Cut(2, is_limit=True)),
        ("one two", None, ["three"], Cut(7)),
    ],
)
def test_cut_is_at_the_first_stop_or_the_limit(
    text: str, limit: int | None, stops: list[str], cut: Cut
) -> None:
    assert find_cut(encode(text), limit, stops, decode) == cut


@given(st.text("ab.", max_size=20), st.lists(st.text("ab.", min_size=1), max_size=3))
def test_tokens_before_a_cut_have_no_stop_string(text: str, stops: list[str]) -> None:
    cut = find_cut(encode(text), None, stops, decode)
    assert not any(stop in text[: cut.length - 1] for stop in stops)
    assert bool(cut.stop) == any(stop in text for stop in stops)
    assert text[: cut.length].endswith(cut.stop)


@given(st.integers(0, 6), st.integers(0, 6))
def test_part_of_a_response_is_a_sound_response(length: int, boundary: int) -> None:
    spans = [Span(0, boundary, 0), Span(boundary, 6, 1)]
    response = make_response(
        6,
        spans=[span for span in spans if span.start < span.stop],
        uncertainty=bytes(12),
        signals=bytes(72),
        events=[ControlEvent("intervene", "test", 3, 0.0, 0.0)],
        thought_start=1,
        thinking=4,
    )
    kept = cut_response(response, Cut(length, "."))
    assert kept.tokens == response.tokens[: 4 * length]
    assert bool(kept.events) == (length > 3)
    turn = make_turn(kept, prompt=pack([1], INT32))
    flaw = validate_trajectory(
        make_trajectory(turns=[turn]), Limits(100, 100, 2), AdmissionWindow(0, 1, 0, 0, 1)
    )
    assert flaw is None


def test_response_that_the_limit_cuts_is_truncated() -> None:
    assert cut_response(make_response(3), Cut(2, is_limit=True)).stop is StopReason.LENGTH
    assert cut_response(make_response(3), Cut(2, "x")).stop is StopReason.END
    assert cut_response(make_response(3), Cut(3)) == make_response(3)
