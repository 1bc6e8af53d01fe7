"""Settings of the environment."""

from __future__ import annotations

from typing import Annotated, Any

from config.section import Section, says


class EnvSection(Section, frozen=True):
    """The environment that is played, and what all environments have."""

    name: Annotated[
        str,
        says(
            "Environment: alfworld, arithmetic, webshop, search, textarena, gymnasium, harness, "
            "openenv:URL, reasoning-gym:NAME[,NAME...], skyrl-gym:NAME, one registered by entry "
            "point, ./FILE.py, ./FILE.py:NAME or MODULE:NAME"
        ),
    ] = "alfworld"
    max_turns: Annotated[
        int,
        says(
            "Turns an episode may take; 0: the environment's own limit (ALFWorld: small 20, "
            "real 50; webshop 15; search 4; arithmetic 5; others 30)",
            ge=0,
        ),
    ] = 0
    history: Annotated[
        int,
        says(
            "Past pairs of action and observation in the prompt; -1: the environment's own "
            "number (ALFWorld 1, webshop 2, others 4)",
            ge=-1,
            le=50,
        ),
    ] = -1
    curriculum_half_life: Annotated[
        float,
        says(
            "Updates after which an episode counts half for the curriculum, which draws tasks "
            "that are solved at times more often; 0: no curriculum, all tasks alike",
            ge=0,
        ),
    ] = 0.0
    settings: dict[str, Any] = {}
    """Settings that the environment itself declares, by name (envs/settings.py)."""
