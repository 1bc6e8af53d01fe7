"""Numbers as people read them."""

from __future__ import annotations

NOTHING = "-"


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f} %"


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def decimal(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def duration(seconds: float) -> str:
    """42 s, 3:07 min, 1:02:09 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02} min"
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} h"
