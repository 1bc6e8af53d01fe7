"""Policies and trajectories small enough for a test to compute with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np

from config import AnyAlgorithm, AnyLoss, Config, Endpoints, Job
from config.resolve import resolve
from protocol.arrays import FLOAT32, INT32, UINT8, pack
from protocol.messages import EpisodeKey, Response, Span, StopReason, Trajectory, Turn

TURNS = 10 * [
    (
        "Your task is to: put a mug in cabinet\nYou see a mug 1 and a cabinet 12.\nActions: go "
        "to cabinet 12; take mug 1",
        "<think>I see mug 1.</think>\n<action>take mug 1</action>",
    ),
    (
        "Your task is to: cool a cup\nYou arrive at fridge 2.\nActions: open fridge 2; look",
        "<think>I open it.</think>\n<action>open fridge 2</action>",
    ),
]
"""(prompt, response) texts."""

SMALL = {
    "model.tiny.hidden_size": "32",
    "model.tiny.layers": "2",
    "model.tiny.heads": "2",
    "model.tiny.vocabulary": "400",
}


def small_config(**settings: str) -> Config:
    """Defaults with a model of a few thousand weights; settings are named section__name."""
    return resolve(
        None, SMALL | {name.replace("__", "."): value for name, value in settings.items()}
    )


ALGORITHMS = {kind.__struct_config__.tag: kind for kind in get_args(AnyAlgorithm)}
LOSS_SETTINGS = {kind.__struct_config__.tag: kind for kind in get_args(AnyLoss)}


def make_algorithm(name: str, **settings: object) -> AnyAlgorithm:
    """Settings of an algorithm by its name, with those of `settings` that it has."""
    return _with_own(ALGORITHMS[name], settings)


def make_loss(name: str, **settings: object) -> AnyLoss:
    """Settings of a loss by its name, with those of `settings` that it has."""
    return _with_own(LOSS_SETTINGS[name], settings)


def _with_own(kind: type, settings: dict[str, object]) -> Any:
    own = kind.__struct_fields__
    return kind(**{name: value for name, value in settings.items() if name in own})


def job_in(directory: Path, config: Config) -> Job:
    """A job whose model directory is directory/policy."""
    nowhere = Endpoints(**dict.fromkeys(Endpoints.__struct_fields__, ""))
    return Job(
        config=config,
        endpoints=nowhere,
        run_dir=str(directory),
        model_dir=str(directory / "policy"),
        weights_dir=str(directory / "weights"),
    )


def random_turn(
    rng: np.random.Generator, vocabulary: int, versions: tuple[int, ...] = (0,), **changes
) -> Turn:
    """A turn of random tokens, the first and one other of which are masked."""
    length = int(rng.integers(3, 12))
    mask = np.ones(length, dtype=np.uint8)
    mask[[0, int(rng.integers(length))]] = 0
    log_probs = -rng.exponential(2.0, length)
    log_probs[mask == 0] = np.nan
    cuts = np.linspace(0, length, len(versions) + 1).astype(int)
    spans = [Span(int(a), int(b), v) for a, b, v in zip(cuts, cuts[1:], versions, strict=False)]
    fields = {
        "tokens": pack(rng.integers(7, vocabulary, length), INT32),
        "log_probs": pack(log_probs, FLOAT32),
        "mask": pack(mask, UINT8),
        "spans": spans,
        "uncertainty": b"",
        "signals": b"",
        "events": [],
        "stop": StopReason.END,
        "score": float("nan"),
        "thinking": 0,
    }
    return Turn(
        prompt=pack(rng.integers(7, vocabulary, int(rng.integers(4, 20))), INT32),
        kept=Response(**fields | changes),
        rejected=[],
        reward=float(rng.integers(2)),
        valid=bool(rng.random() < 0.8),
        anchor="abc"[int(rng.integers(3))],
        action="look",
    )


def random_group(
    rng: np.random.Generator, vocabulary: int, number: int = 0, members: int = 4, **turn
) -> list[Trajectory]:
    """Played episodes of one task."""
    return [
        Trajectory(
            key=EpisodeKey(number, member),
            lease_attempt=0,
            task_index=number,
            task_type="t",
            task="t",
            success=False,
            turns=[random_turn(rng, vocabulary, **turn) for _ in range(int(rng.integers(1, 4)))],
        )
        for member in range(members)
    ]
