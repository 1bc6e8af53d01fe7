"""Advice on settings that do not fit, each named with the numbers that show it.

Pure: of the records of metrics.jsonl.
"""

from __future__ import annotations

from telemetry.sinks.metrics_file import Record

MOST = 0.5
"""Share of responses at their budget's end from which on the budget is too small."""


def find_advice(record: Record) -> dict[str, str]:
    """Say what an update or an evaluation shows to be set wrongly: {name: words}."""
    share = record.get("truncated_share")
    if not isinstance(share, int | float) or not share > MOST:
        return {}
    words = (
        f"{share:.0%} of the responses were cut off at their budget, most before they acted; raise "
        "sampling.max_tokens, and engine.max_model_len with it"
    )
    return {"truncated responses": words}
