"""Advice: what keeps a run from learning, and what to do about it.

Pure: of the records of metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Sequence

from telemetry.format import format_percent
from telemetry.sinks.metrics_file import Record

UPDATES_WITHOUT_SUCCESS = 5
"""Updates in a row without a success after which that is said."""

MIN_EPISODES = 16
"""Episodes of an evaluation or a batch from which on its figures mean something."""

CUT_OFF_SHARE = 0.5
"""Share of turns that the token budget cut off, from which on that is said."""

LOW_WIN_SHARE = 0.5
"""Share of demonstrations that the expert won, below which that is said."""


def find_advice(updates: Sequence[Record], evaluations: Sequence[Record]) -> dict[str, str]:
    """{what is wrong: its numbers, and the settings to change} of the records so far."""
    newest = [
        records[-1]
        for records in (evaluations, updates)
        if records and (records[-1].get("episodes") or 0) >= MIN_EPISODES
    ]
    advice = {
        "cut off": _advise_on_length(newest),
        "no valid action": _advise_on_form(newest),
        "nothing to learn from": _advise_on_success(updates[-UPDATES_WITHOUT_SUCCESS:]),
    }
    return {name: words for name, words in advice.items() if words}


def advise_on_demonstrations(won: float, played: float) -> str:
    """Say that the expert won few of its demonstrations; empty if it did not."""
    if not played or won >= LOW_WIN_SHARE * played:
        return ""
    return (
        f"the expert won {won:,.0f} of {played:,.0f} demonstrations "
        f"({format_percent(won / played)}), and only these are imitated; with fewer slips it wins "
        "more (warm_start.wasted_turn_rate, warm_start.expert_error_rate)"
    )


def _advise_on_length(newest: Sequence[Record]) -> str:
    shares = [record.get("truncated_share") or 0.0 for record in newest]
    if max(shares, default=0.0) < CUT_OFF_SHARE:
        return ""
    return (
        f"{format_percent(max(shares))} of the turns were cut off at sampling.max_tokens; raise "
        "it, and engine.max_model_len with it"
    )


def _advise_on_form(newest: Sequence[Record]) -> str:
    if not any(record.get("valid_action_rate") == 0 for record in newest):
        return ""
    return (
        "no response had a valid action; a warm start (warm_start.episodes) teaches the form that "
        "the prompt asks for, or a model that follows instructions knows it"
    )


def _advise_on_success(updates: Sequence[Record]) -> str:
    if len(updates) < UPDATES_WITHOUT_SUCCESS:
        return ""
    if any(update.get("success") or update.get("informative_share") for update in updates):
        return ""
    episodes = sum(update.get("episodes") or 0 for update in updates)
    return (
        f"none of the last {episodes:,.0f} training episodes succeeded, and in no group did "
        "returns differ; begin with easier tasks, more turns (env.max_turns), a longer warm start "
        "(warm_start.episodes) or another model"
    )
