"""Porter's stemmer as Lucene has it: that of 1980, with its author's later rules -bli and -logi.

Written here because the stemmers that are light enough to depend on leave these rules out, and a
stem that differs is a document that is not found.
`tests/unit/envs/webshop/test_ranking.py` holds it to snowballstemmer wherever the two must
agree.
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
_REMOVED_BY_STEP_4 = """
    al ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize
"""
_STEP_4 = tuple(_REMOVED_BY_STEP_4.split())


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a lower-case word. Words of one or two characters are left as they are."""
    if len(word) <= 2:
        return word
    word = _step_1(word)
    word = _replace_suffix(word, _STEP_2)
    word = _replace_suffix(word, _STEP_3)
    word = _step_4(word)
    return _step_5(word)


def _is_consonant(word: str, i: int) -> bool:
    """True if letter `i` is a consonant.

    A y is one at the start and after a vowel; so is everything that is no letter.
    """
    if word[i] == "y":
        return i == 0 or not _is_consonant(word, i - 1)
    return word[i] not in _VOWELS


def _measure(word: str) -> int:
    """Number of vowel-consonant sequences: [C](VC)^m[V]."""
    kinds = [_is_consonant(word, i) for i in range(len(word))]
    return sum(after and not before for before, after in pairwise(kinds))


def _has_vowel(word: str) -> bool:
    return not all(_is_consonant(word, i) for i in range(len(word)))


def _ends_with_double_consonant(word: str) -> bool:
    return len(word) >= 2 and word[-1] == word[-2] and _is_consonant(word, len(word) - 1)


def _ends_short(word: str) -> bool:
    """True if the word ends in consonant, vowel, consonant, the last one none of w, x, y."""
    end = len(word) - 1
    return (
        end >= 2
        and _is_consonant(word, end)
        and not _is_consonant(word, end - 1)
        and _is_consonant(word, end - 2)
        and word[-1] not in ("w", "x", "y")
    )


def _step_1(word: str) -> str:
    """Remove plurals, -ed and -ing, and turn -y after a vowel somewhere into -i."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        if _measure(word[:-3]) > 0:
            word = word[:-1]
    elif word.endswith("ed") and _has_vowel(word[:-2]):
        word = _restore_ending(word[:-2])
    elif word.endswith("ing") and _has_vowel(word[:-3]):
        word = _restore_ending(word[:-3])
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    return word


def _restore_ending(word: str) -> str:
    """Make a word again of what is left without -ed or -ing."""
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _ends_with_double_consonant(word):
        if word[-1] in ("l", "s", "z"):
            return word
        return word[:-1]
    if _measure(word) == 1 and _ends_short(word):
        return word + "e"
    return word


def _replace_suffix(word: str, rules: dict[str, str]) -> str:
    suffix = max((s for s in rules if word.endswith(s)), key=len, default="")
    if suffix and _measure(word[: -len(suffix)]) > 0:
        return word[: -len(suffix)] + rules[suffix]
    return word


def _step_4(word: str) -> str:
    """Remove the longest suffix of `_STEP_4`."""
    suffix = max((s for s in _STEP_4 if word.endswith(s)), key=len, default="")
    if not suffix:
        return word
    rest = word[: -len(suffix)]
    if suffix == "ion" and not rest.endswith(("s", "t")):
        return word
    if _measure(rest) > 1:
        return rest
    return word


def _step_5(word: str) -> str:
    """Remove a final e, and one of two final l."""
    if word.endswith("e"):
        rest = word[:-1]
        measure = _measure(rest)
        if measure > 1 or (measure == 1 and not _ends_short(rest)):
            word = rest
    if word.endswith("ll") and _measure(word) > 1:
        word = word[:-1]
    return word
