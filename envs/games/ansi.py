"""Text drawn for a terminal as text that can be read: colors become marks, whatever else a terminal
is told is left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Marks = Mapping[str, tuple[str, str]]
"""What stands before and after a text that is drawn so, by the number of the style ("41": a red
background)."""

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
# What a number takes back, or what one like it replaces.
_ENDS = {
    "39": _FOREGROUND,
    "49": _BACKGROUND,
    "22": _WEIGHT,
    "23": re.compile("3"),
    "24": re.compile("4"),
    "27": re.compile("7"),
}
_PARAMETERS_OF_A_COLOR = {"5": 3, "2": 5}


def readable(text: str, marks: Marks | None = None) -> str:
    """`text` with a mark around every stretch of a style of its own: that of `marks`, else `[on red
    F]`."""
    known = marks or {}
    return "".join(
        _marked(run, style, known) if style and run else run for style, run in _runs(text)
    )


def _marked(run: str, style: tuple[str, ...], marks: Marks) -> str:
    unknown = [_NAMES.get(number, number) for number in style if number not in marks]
    if unknown:
        run = f"[{' '.join(unknown)} {run}]"
    for number in style:
        before, after = marks.get(number, ("", ""))
        run = f"{before}{run}{after}"
    return run


def _runs(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(numbers of the style, text) of each stretch, in order; neighbors of the same style are
    one."""
    style: tuple[str, ...] = ()
    run = ""
    position = 0
    for escape in _ESCAPE.finditer(text):
        run += text[position : escape.start()]
        position = escape.end()
        if escape[2] != "m":
            continue
        changed = _restyled(style, escape[1])
        if changed != style:
            yield style, run
            style = changed
            run = ""
    yield style, run + text[position:]


def _restyled(style: tuple[str, ...], parameters: str) -> tuple[str, ...]:
    """The style after the numbers of one more escape."""
    numbers = [number.lstrip("0") or "0" for number in parameters.split(";")]
    while numbers:
        # 38 and 48 begin a color of several numbers: 38;5;N or 38;2;R;G;B.
        size = (
            _PARAMETERS_OF_A_COLOR.get(numbers[1], 1)
            if numbers[0] in ("38", "48") and len(numbers) > 1
            else 1
        )
        number = ";".join(numbers[:size])
        del numbers[:size]
        if number == "0":
            style = ()
            continue
        ended = _ENDS.get(number)
        replaced = ended or _same_kind(number)
        style = tuple(
            other
            for other in style
            if other != number and not (replaced and replaced.fullmatch(other.partition(";")[0]))
        )
        if ended is None:
            style = (*style, number)
    return style


def _same_kind(number: str) -> re.Pattern[str] | None:
    """Of the colors that cannot be at the same time."""
    first = number.partition(";")[0]
    return next((kind for kind in (_FOREGROUND, _BACKGROUND) if kind.fullmatch(first)), None)
