"""What the dashboard shows of the controller. Pure but for the clock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from math import isfinite

from controller.admission import Admission
from controller.signals import SignalRouter
from controller.turns import TurnRunner
from protocol.router import display_name

TURNS = 8
"""Under way, that are shown."""
ACTORS = 200


def shown(
    turns: TurnRunner,
    signals: SignalRouter,
    engines: Callable[[], list[tuple[str, str, int]]],
    admission: Admission,
    last_seen: Mapping[bytes, float],
    decode: Callable[[list[int]], str],
) -> dict:
    """Turns under way with their tokens, the latest decisions, engines (`engines`: address, health
    and turns of each) and actors, as JSON can hold them. Turns and decisions are those of the
    controller's own engines."""
    now = time.monotonic()
    playing = Counter(holder.actor for holder in admission.leased.values())
    return {
        "turns": [
            {
                "id": turn,
                "tokens": [decode([token]) for token in tokens],
                "uncertainty": list(map(finite, scores)),
            }
            for turn, tokens, scores in signals.view_turns(TURNS)
        ],
        "decisions": [
            {
                "turn": turn,
                "what": event.kind,
                "why": event.reason,
                "value": finite(event.value),
                "threshold": finite(event.threshold),
            }
            for turn, event in reversed(turns.decisions)
        ],
        "engines": [
            {"url": url, "health": health, "turns": turns} for url, health, turns in engines()
        ],
        "actors": [
            {
                "name": display_name(actor),
                "episodes": playing[actor],
                "silent": round(now - seen, 1),
            }
            for actor, seen in list(last_seen.items())[:ACTORS]
        ],
    }


def finite(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if isfinite(value) else None
