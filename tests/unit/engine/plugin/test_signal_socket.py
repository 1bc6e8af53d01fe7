"""Commands of the controller, which come a step later than what they are about."""

from __future__ import annotations

import pytest

from engine.plugin.signal_socket import takes_effect
from protocol.messages import ForceTokens

COMMAND = ForceTokens(turn_id="a", tokens=[6, 7], unless=((6, 7, 8), (9,)))


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ([], True),
        ([1, 7, 8], True),
        ([6, 7, 1], True),
        ([1, 6, 7, 8, 1], False),
        ([1, 9, 1], False),
        ([1, 6], False),
        ([1, 6, 7], False),
    ],
)
def test_takes_effect_unless_the_thought_ends_by_itself(
    response: list[int], expected: bool
) -> None:
    """A tag of several tokens counts from its first one on."""
    assert takes_effect(COMMAND, response, vocabulary=10) == expected


def test_takes_effect_with_tokens_that_do_not_exist_never() -> None:
    assert not takes_effect(COMMAND, [], vocabulary=7)
