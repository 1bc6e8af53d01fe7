"""The words of the generated catalogue, in `words.json`.

It has five categories as in WebShop, each with its kinds of things, what they can be, and their
options. Attributes are adjectives or short phrases. A word with a star is a noun there
("fleece* lined"); the kinds of things and the brands are nouns throughout. Values of one option
must differ for the reward's fuzzy comparison.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec


class Group(msgspec.Struct, frozen=True):
    """Kinds of things that share attributes and options.

    `kinds`: name -> usual price in dollars; `options`: name -> possible values, or the name of a
    list in `Words.option_values`.
    """

    category: str
    path: tuple[str, str]
    kinds: dict[str, int]
    attributes: tuple[str, ...]
    options: dict[str, str | tuple[str, ...]]


class Words(msgspec.Struct, frozen=True):
    """All words.

    In a wording, {what} stands for attributes and kind, {options} for ", size 8" and the like, or
    nothing.
    """

    brands: tuple[str, ...]
    option_values: dict[str, tuple[str, ...]]
    groups: tuple[Group, ...]
    human_wordings: tuple[str, ...]
    synthetic_wording: str
    bullets: tuple[str, ...]
    descriptions: tuple[str, ...]

    def values_of(self, group: Group, option: str) -> tuple[str, ...]:
        """The possible values of an option, in the shop's order."""
        values = group.options[option]
        if isinstance(values, str):
            return self.option_values[values]
        return values


@cache
def load_words() -> Words:
    """The words, read once per process."""
    return msgspec.json.decode(Path(__file__).with_name("words.json").read_bytes(), type=Words)
