"""SCHEMA_VERSION goes up whenever what is sent or recorded changes its shape."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from enum import Enum
from hashlib import sha256

import msgspec

from controller.curriculum import TaskRecord
from controller.rules.calibration import Calibration
from controller.rules.thinking import RuleSpec
from learner.checkpoint import TrainingState
from protocol.frames import AnyMessage
from protocol.messages import SCHEMA_VERSION

RECORDED = (*typing.get_args(AnyMessage), TrainingState, Calibration, TaskRecord, RuleSpec)
"""Messages, and what checkpoints and requests to engines hold; episodes are a message."""

SHAPE = (10, "74e51a1aa46bbd00")
"""The version of the messages, and the digest of all shapes that it has."""


def find_types(kind: object) -> Iterator[type]:
    """Find the structs and enums in a type, those in their fields too."""
    for argument in typing.get_args(kind):
        yield from find_types(argument)
    if isinstance(kind, type) and issubclass(kind, Enum):
        yield kind
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for field in typing.get_type_hints(kind).values():
            yield from find_types(field)


def describe_shape(kind: type) -> str:
    """The names and types of a struct's fields in their order, or the values of an enum."""
    if issubclass(kind, Enum):
        return f"{kind.__name__}: {[member.value for member in kind]}"
    hints = typing.get_type_hints(kind)
    fields = [f"{name} {hints[name]}" for name in kind.__struct_fields__]
    config = kind.__struct_config__
    return f"{kind.__name__}: {fields} {config.array_like} {config.tag}"


def test_schema_version_is_raised_with_every_change_of_shape() -> None:
    """A process, or a run, of another version is refused by the number, and by nothing else."""
    shapes = {describe_shape(kind) for root in RECORDED for kind in find_types(root)}
    digest = sha256("\n".join(sorted(shapes)).encode()).hexdigest()[:16]
    assert (SCHEMA_VERSION, digest) == SHAPE, (
        "what processes send or record has another shape now: raise SCHEMA_VERSION in "
        "protocol/messages.py by one, so that nobody reads the one for the other, and write here "
        f"SHAPE = (its new number, {digest!r})"
    )
