"""Exact match of answers after normalization, as in SQuAD (Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normalize(text: str) -> str:
    """The text in lower case, without ASCII punctuation and articles, with single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, targets: Iterable[str]) -> bool:
    """True if the answer is one of the targets.

    One of which normalization leaves nothing has to be given as it is (the band "The The").
    """
    normalized = normalize(answer)
    if normalized:
        return any(normalized == normalize(target) for target in targets)
    literal = answer.strip().casefold()
    return literal != "" and any(literal == target.strip().casefold() for target in targets)


def contains_phrase(text: str, phrase: str) -> bool:
    """True if the words of `phrase` stand in `text`, one after the other."""
    return f" {normalize(phrase)} " in f" {normalize(text)} "
