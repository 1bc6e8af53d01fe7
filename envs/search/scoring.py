"""When an answer is right: exact match after normalisation, as question answering has been scored
since SQuAD (Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def is_right(answer: str, targets: Iterable[str]) -> bool:
    """Whether the answer is one of the targets.

    One of which nothing is left has to be given as it is (the band "The The").
    """
    given = normalize(answer)
    if given:
        return any(given == normalize(target) for target in targets)
    literal = answer.strip().casefold()
    return literal != "" and any(literal == target.strip().casefold() for target in targets)


def mentions(text: str, phrase: str) -> bool:
    """Whether the words of `phrase` stand in `text`, one after the other."""
    return f" {normalize(phrase)} " in f" {normalize(text)} "
