"""Colors of a terminal, written out as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.games.ansi import ansi_to_text


@pytest.mark.parametrize(
    ("drawn", "read"),
    [
        ("plain", "plain"),
        ("\x1b[41mS\x1b[0mF", "[on red S]F"),
        ("\x1b[34;1m\x1b[43mR\x1b[0m\x1b[0m|", "[blue bold on yellow R]|"),
        ("\x1b[31ma\x1b[32mb\x1b[39mc", "[red a][green b]c"),
        ("\x1b[1;31ma\x1b[22mb\x1b[mc", "[bold red a][red b]c"),
        ("\x1b[38;5;196ma\x1b[48;2;1;2;3mb\x1b[0m", "[38;5;196 a][38;5;196 48;2;1;2;3 b]"),
        ("\x1b[2J\x1b[H\x1b]0;title\x07\x1b(Bx", "x"),
    ],
)
def test_what_is_shown_by_a_color_is_written(drawn: str, read: str):
    assert ansi_to_text(drawn) == read


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "31", "41", "42", "34;1"]),
            st.text("ab|\n", min_size=1, max_size=3),
        ),
        max_size=6,
    )
)
def test_no_color_is_lost_and_no_letter_changed(stretches):
    drawn = "".join(f"\x1b[{style}m{text}\x1b[0m" if style else text for style, text in stretches)
    marks = {"31": ("(", ")"), "41": ("[", "]"), "42": ("{", "}"), "34": ("<", ">"), "1": ("", "")}
    letters: dict[str, str] = {"": "", "31": "(", "41": "[", "42": "{", "34;1": "<"}
    seen = []
    within = ""
    for char in ansi_to_text(drawn, marks):
        if char in "([{<":
            within = char
        elif char in ")]}>":
            within = ""
        else:
            seen.append((within, char))
    assert seen == [(letters[style], char) for style, text in stretches for char in text]
