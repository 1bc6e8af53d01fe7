"""Text drawn for a terminal as text that can be read.

Colors become marks; whatever else a terminal is told is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Marks = Mapping[str, tuple[str, str]]
"""(before, after) a text that is drawn so, by the number of the style ("41": a red background)."""

_ESCAPE = re.compile(
    r"\x1b(?:\[([0-?]*)[ -/]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[@-_])"
)

_COLORS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_NAMES = {
    "1": "bold",
    "2": "faint",
    "3": "italic",
    "4": "underlined",
    "7": "inverse",
    **{str(30 + number): color for number, color in enumerate(_COLORS)},
    **{str(40 + number): f"on {color}" for number, color in enumerate(_COLORS)},
    **{str(90 + number): f"bright {color}" for number, color in enumerate(_COLORS)},
    **{str(100 + number): f"on bright {color}" for number, color in enumerate(_COLORS)},
}
_FOREGROUND = re.compile(r"3[0-8]|9[0-7]")
_BACKGROUND = re.compile(r"4[0-8]|10[0-7]")
_WEIGHT = re.compile(r"[12]")
# Styles that a number takes back.
_ENDS = {
    "39": _FOREGROUND,
    "49": _BACKGROUND,
    "22": _WEIGHT,
    "23": re.compile("3"),
    "24": re.compile("4"),
    "27": re.compile("7"),
}
_PARAMETERS_OF_A_COLOR = {"5": 3, "2": 5}


def ansi_to_text(text: str, marks: Marks | None = None) -> str:
    """`text` with a mark around every stretch of a style of its own.

    The mark is that of `marks`, else like `[on red F]`.
    """
    known = marks or {}
    return "".join(_mark(run, style, known) for style, run in _runs(text))


def _mark(run: str, style: tuple[str, ...], marks: Marks) -> str:
    """A stretch with its marks; one that is empty, or of no style, as it is."""
    if not style or not run:
        return run
    unknown = [_NAMES.get(number, number) for number in style if number not in marks]
    if unknown:
        run = f"[{' '.join(unknown)} {run}]"
    for number in style:
        before, after = marks.get(number, ("", ""))
        run = f"{before}{run}{after}"
    return run


def _runs(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(numbers of the style, text) of each stretch, in order.

    Neighbors of the same style are one.
    """
    style: tuple[str, ...] = ()
    run = ""
    position = 0
    for escape in _ESCAPE.finditer(text):
        run += text[position : escape.start()]
        position = escape.end()
        if escape[2] != "m":
            continue
        new_style = _apply_escape(style, escape[1])
        if new_style != style:
            yield style, run
            style = new_style
            run = ""
    yield style, run + text[position:]


def _apply_escape(style: tuple[str, ...], parameters: str) -> tuple[str, ...]:
    """The style after the numbers of one more escape."""
    for number in _split_parameters(parameters):
        if number == "0":
            style = ()
        elif number in _ENDS:
            style = _without(style, number, _ENDS[number])
        else:
            style = (*_without(style, number, _color_kind(number)), number)
    return style


def _split_parameters(parameters: str) -> Iterator[str]:
    """The numbers of an escape; the several of one color (38;5;N or 38;2;R;G;B) are one."""
    numbers = [number.lstrip("0") or "0" for number in parameters.split(";")]
    while numbers:
        size = 1
        if numbers[0] in ("38", "48") and len(numbers) > 1:
            size = _PARAMETERS_OF_A_COLOR.get(numbers[1], 1)
        yield ";".join(numbers[:size])
        del numbers[:size]


def _without(
    style: tuple[str, ...], number: str, replaced: re.Pattern[str] | None
) -> tuple[str, ...]:
    """The style without `number`, and without what `replaced` matches."""
    return tuple(
        other
        for other in style
        if other != number and not (replaced and replaced.fullmatch(other.partition(";")[0]))
    )


def _color_kind(number: str) -> re.Pattern[str] | None:
    """The kind of color that a number sets, of which there is one at a time; None for others."""
    first = number.partition(";")[0]
    for kind in (_FOREGROUND, _BACKGROUND):
        if kind.fullmatch(first):
            return kind
    return None
