"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def format_updates(number: int) -> str:
    """How many updates: 1 update, 1,234 updates."""
    if number == 1:
        return "1 update"
    return f"{number:,} updates"


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


def describe_figures(figures: Mapping[str, float]) -> str:
    """Describe what a phase of a run has come to: 193 won, loss 0.41."""
    words = []
    if "turns" in figures:
        words.append(f"{figures['turns']:,.0f} turns")
    if "won" in figures:
        words.append(f"{figures['won']:,.0f} won")
    if "loss" in figures:
        words.append(f"loss {figures['loss']:.3g}")
    return ", ".join(words)


def format_interval(low: float, high: float) -> str:
    """Two shares as bounds in per cent: 35.1 to 52.4."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def draw_sparkline(shares: Sequence[float]) -> str:
    """Shares from 0 to 1 as bars, one character each."""
    bars = "▁▂▃▄▅▆▇█"
    return "".join(bars[min(int(share * len(bars)), len(bars) - 1)] for share in shares)
