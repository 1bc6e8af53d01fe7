"""Porter's stemmer as Lucene has it: the algorithm of 1980 with its author's two later rules (-bli,
-logi).

Written here because the stemmers that are light enough to depend on leave these rules out, and a
stem that differs is a document that is not found. `tests/test_webshop_ranking.py` holds it to
snowballstemmer wherever the two must agree.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

_VOWELS = frozenset("aeiou")

# Suffix and what replaces it, where the part before it has a measure above 0. The longest suffix
# that fits is the one tried.
_STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "bli": "ble",
    "alli": "al",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
    "logi": "log",
}
_STEP_3 = {
    "icate": "ic",
    "ative": "",
    "alize": "al",
    "iciti": "ic",
    "ical": "ic",
    "ful": "",
    "ness": "",
}
# These go where the part before them has a measure above 1.
_STEP_4 = (
    "al",
    "ance",
    "ence",
    "er",
    "ic",
    "able",
    "ible",
    "ant",
    "ement",
    "ment",
    "ent",
    "ion",
    "ou",
    "ism",
    "ate",
    "iti",
    "ous",
    "ive",
    "ize",
)


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a lower-case word. Words of one or two characters are left as they are."""
    if len(word) <= 2:
        return word
    word = _step_1(word)
    word = _replace(word, _STEP_2)
    word = _replace(word, _STEP_3)
    word = _step_4(word)
    return _step_5(word)


def _consonant(word: str, i: int) -> bool:
    """Whether letter `i` is one.

    A y is, at the start and after a vowel; so is everything that is no letter.
    """
    if word[i] == "y":
        return i == 0 or not _consonant(word, i - 1)
    return word[i] not in _VOWELS


def _measure(word: str) -> int:
    """Number of vowel-consonant sequences: [C](VC)^m[V]."""
    kinds = [_consonant(word, i) for i in range(len(word))]
    return sum(after and not before for before, after in pairwise(kinds))


def _has_vowel(word: str) -> bool:
    return not all(_consonant(word, i) for i in range(len(word)))


def _double_consonant(word: str) -> bool:
    return len(word) >= 2 and word[-1] == word[-2] and _consonant(word, len(word) - 1)


def _short(word: str) -> bool:
    """Whether it ends in consonant, vowel, consonant, the last one none of w, x, y."""
    end = len(word) - 1
    return (
        end >= 2
        and _consonant(word, end)
        and not _consonant(word, end - 1)
        and _consonant(word, end - 2)
        and word[-1] not in ("w", "x", "y")
    )


def _step_1(word: str) -> str:
    """Plurals, -ed, -ing, and -y after a vowel somewhere."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        if _measure(word[:-3]) > 0:
            word = word[:-1]
    elif suffix := next(
        (s for s in ("ed", "ing") if word.endswith(s) and _has_vowel(word[: -len(s)])), ""
    ):
        word = _tidy(word[: -len(suffix)])
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    return word


def _tidy(word: str) -> str:
    """What -ed or -ing was taken from, as a word again."""
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _double_consonant(word):
        return word if word[-1] in ("l", "s", "z") else word[:-1]
    return word + "e" if _measure(word) == 1 and _short(word) else word


def _replace(word: str, rules: dict[str, str]) -> str:
    suffix = max((s for s in rules if word.endswith(s)), key=len, default="")
    if suffix and _measure(word[: -len(suffix)]) > 0:
        return word[: -len(suffix)] + rules[suffix]
    return word


def _step_4(word: str) -> str:
    suffix = max((s for s in _STEP_4 if word.endswith(s)), key=len, default="")
    if not suffix:
        return word
    rest = word[: -len(suffix)]
    if suffix == "ion" and not rest.endswith(("s", "t")):
        return word
    return rest if _measure(rest) > 1 else word


def _step_5(word: str) -> str:
    """A final e, and one of two final l."""
    if word.endswith("e"):
        rest = word[:-1]
        measure = _measure(rest)
        if measure > 1 or (measure == 1 and not _short(rest)):
            word = rest
    if word.endswith("ll") and _measure(word) > 1:
        word = word[:-1]
    return word
