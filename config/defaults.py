"""Defaults that depend on other settings.

They are of the tiny policy in an environment, and of the presets of control.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from config import Config, ControlSection, EnvSection, ModelSection
from config.options import all_settings, default_of

TINY_DEFAULTS: dict[str, dict[str, Any]] = {
    "search": {
        "run.max_minutes": 19.0,
        "model.tiny.tokens": "words",
        "warm_start.episodes": 10_000,
        "warm_start.max_turns": 6,
        "warm_start.wasted_turn_rate": 0.35,
    },
    "webshop": {
        "run.max_minutes": 19.0,
        "env.max_turns": 10,
        "model.tiny.tokens": "words",
        "model.tiny.vocabulary": 2048,
        "warm_start.episodes": 4_600,
        "warm_start.max_turns": 20,
        "warm_start.wasted_turn_rate": 0.25,
    },
}
"""Environment -> defaults ({full name: value}) that are others there for the tiny policy.

docs/measurements/learning.md says why. A model of one's own plays an environment as others know it.
"""

_LONG_THOUGHTS = {"control.t2po.window": 7, "control.t2po.min_thinking": 16}
"""Defaults of any model but the tiny policy, which thinks 13 tokens a turn.

The paper does not publish N, L_min and j.
"""

OWN_MODEL_DEFAULTS: dict[str, Any] = {
    **_LONG_THOUGHTS,
    "warm_start.episodes": 0,
    "warm_start.learning_rate": 1e-4,
    "warm_start.muon_learning_rate": 0.0,
    "warm_start.wasted_turn_rate": 0.0,
    "learner.learning_rate": 1e-6,
}
"""Defaults of any model but the tiny policy, which begins with random weights."""

_AS_PUBLISHED = {"control.t2po.intervention_rate": 0.0, "control.t2po.resample_rate": 0.0}

MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "smollm2": {
        "run.max_minutes": 120.0,
        "warm_start.episodes": 100,
        "warm_start.learning_rate": 3e-4,
        "learner.learning_rate": 5e-6,
        "learner.groups_per_update": 4,
        "learner.group_size": 4,
        "learner.checkpoint_every": 2,  # an update takes minutes
        "actor.count": 16,
        "eval.episodes": 64,
        "eval.every": 0,
    }
}
"""Pretrained model -> defaults that are others for it."""

SERIAL_DEFAULTS: dict[str, Any] = {
    "actor.count": 4,
    "run.max_updates": 2,
    "learner.groups_per_update": 2,
    "learner.group_size": 2,
    "learner.lr_decay_fraction": 0.0,  # which would depend on the clock
    "eval.episodes": 1,
    "eval.every": 0,
    "warm_start.threads": 1,
    "sampling.per_request_seeds": True,
    "sampling.max_tokens": 12,
}
"""Defaults of a serial run: it is there to be looked at, and ends in seconds."""

SERIAL_TINY_DEFAULTS: dict[str, Any] = {
    "warm_start.episodes": 30,
    "model.tiny.hidden_size": 64,
    "model.tiny.layers": 2,
    "model.tiny.heads": 2,
}

PRESETS: dict[str, dict[str, Any]] = {
    "auto": {},
    "paper": {**_AS_PUBLISHED, **_LONG_THOUGHTS},
    "code": {
        **_AS_PUBLISHED,
        "control.t2po.score": "code",
        "control.t2po.top_j": 1,
        "control.t2po.delta_statistic": "max",
        "control.t2po.window": 19,
        "control.t2po.min_thinking": 0,
        "control.on_cut": "close",
        "control.t2po.turn_mean": "arithmetic",
        "control.t2po.turn_skip": 32,
        "control.t2po.eta": 0.3,
    },
}
"""control.preset -> defaults that are others there."""

RATES = {
    "control.t2po.epsilon": "control.t2po.intervention_rate",
    "control.t2po.eta": "control.t2po.resample_rate",
}
"""Threshold -> the rate that it follows."""


def other_defaults(full: str) -> list[str]:
    """The defaults of a setting that depend on others, each with what it holds for: for --help."""
    by = {
        **TINY_DEFAULTS,
        "other models": OWN_MODEL_DEFAULTS,
        **MODEL_DEFAULTS,
        **{f"preset {name}": found for name, found in PRESETS.items()},
    }
    return [f"{name} {found[full]}" for name, found in by.items() if full in found]


def defaults_for(given: Mapping[str, Any], serial: bool = False) -> dict[str, Any]:
    """{full name: default} of the settings that depend on those `given` ({full name: value}).

    A run of one process (`serial`) has some of its own.
    """
    model = str(given.get("model.name", ModelSection().name))
    if model == "tiny":
        by_model = TINY_DEFAULTS.get(str(given.get("env.name", EnvSection().name)), {}) | (
            SERIAL_TINY_DEFAULTS if serial else {}
        )
    else:
        by_model = OWN_MODEL_DEFAULTS | MODEL_DEFAULTS.get(model, {})
    return (
        by_model
        | (SERIAL_DEFAULTS if serial else {})
        | PRESETS.get(str(given.get("control.preset", ControlSection().preset)), {})
    )


def with_preset(overrides: Mapping[str, str], recorded: Config) -> dict[str, str]:
    """Return overrides of a run's settings, of which its config.toml has every one.

    A preset among them stands for all that any preset sets, as a new run of that model would have
    it.
    """
    if "control.preset" not in overrides:
        return dict(overrides)
    given = {
        "model.name": recorded.model.name,
        "env.name": recorded.env.name,
        "control.preset": overrides["control.preset"],
    }
    found = defaults_for(given)
    settings = all_settings()
    names = {full for preset in PRESETS.values() for full in preset}
    return {full: str(found.get(full, default_of(settings[full]))) for full in names} | dict(
        overrides
    )


def fixed_thresholds(given: Iterable[str]) -> dict[str, Any]:
    """Return the rates that are 0 for a threshold that is given and meant to hold.

    It is meant to where its rate is not given.
    """
    return {
        rate: 0.0 for threshold, rate in RATES.items() if threshold in given and rate not in given
    }
