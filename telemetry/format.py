"""Numbers as people read them."""

from __future__ import annotations

NO_VALUE = "-"


def format_percent(share: float | None) -> str:
    """A share as per cent: 43.8 %."""
    if share is None:
        return NO_VALUE
    return f"{100 * share:.1f} %"


def format_count(value: float | None) -> str:
    """A whole number with its thousands apart: 1,234."""
    if value is None:
        return NO_VALUE
    return f"{value:,.0f}"


def format_decimal(value: float | None) -> str:
    """A number with two decimals."""
    if value is None:
        return NO_VALUE
    return f"{value:.2f}"


def format_duration(seconds: float) -> str:
    """A time as a clock has it: 42 s, 3:07 min, 1:02:09 h."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02} h"
    if minutes:
        return f"{minutes}:{seconds:02} min"
    return f"{seconds} s"
