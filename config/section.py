"""The parts of every section of settings: its base class, its help texts and its error."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Meta


class ConfigError(ValueError):
    """A setting is unknown, ill-typed or out of bounds; the message names it and its remedy."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section."""


def says(description: str, **bounds: Any) -> Meta:
    """Annotate a setting with its help text and its bounds."""
    return Meta(description=description, **bounds)
