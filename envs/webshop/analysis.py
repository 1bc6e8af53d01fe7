"""Text to search terms, as Lucene's English analysis makes them.

Words by Unicode's rules (UAX #29), no possessive 's, lower case, no stop words, Porter's stems.
"""

from __future__ import annotations

import json
from pathlib import Path

import regex

from envs.webshop.porter import stem

_LUCENE_STOPS = """
    a an and are as at be but by for if in into is it no not of on or such that the their then
    there these they this to was will with
"""
STOP_WORDS = frozenset(_LUCENE_STOPS.split())
"""Lucene's list for English."""

MAX_LENGTH = 255
"""Characters of a token; a longer one is cut into several."""

_POSSESSIVE = ("'s", "’s", "＇s", "'S", "’S", "＇S")

_LUCENE_UNICODE = json.loads(Path(__file__).with_name("lucene_unicode.json").read_text())
"""Characters that Lucene 8, whose Unicode is older, sees otherwise than our `regex` does.

Those of `no_word` belong to no word, those of `picture` are pictures. They were read off Lucene
itself, character by character; ranges are in hexadecimal.
"""

_SKIN_TONES = r"\U0001f3fb-\U0001f3ff"


def _characters(ranges: str) -> str:
    """The inside of a character class."""
    ends = (part.partition("-") for part in ranges.split())
    return "".join(
        rf"\U{int(first, 16):08x}-\U{int(last or first, 16):08x}" for first, _, last in ends
    )


def _word_pattern() -> str:
    """Word-break rules of Lucene's StandardTokenizer.

    Each character takes the marks after it along.
    """
    marks = rf"[[\p{{WB=Extend}}\p{{WB=Format}}\p{{WB=ZWJ}}]--[{_SKIN_TONES}]]*+"

    def unit(characters: str) -> str:
        return rf"[{characters}]{marks}"

    letter = unit(r"\p{WB=ALetter}\p{WB=Hebrew_Letter}")
    hebrew = unit(r"\p{WB=Hebrew_Letter}")
    number = unit(r"\p{WB=Numeric}０-９")
    katakana = unit(r"\p{WB=Katakana}")
    mid_letter = unit(r"\p{WB=MidLetter}\p{WB=MidNumLet}\p{WB=Single_Quote}")
    mid_number = unit(r"\p{WB=MidNum}\p{WB=MidNumLet}\p{WB=Single_Quote}")
    quote = unit(r"\p{WB=Single_Quote}")
    double_quote = unit(r"\p{WB=Double_Quote}")
    joiner = unit(r"\p{WB=ExtendNumLet}")
    between = rf"(?:(?:{joiner})*|{mid_letter}|(?<={hebrew}){double_quote}(?={hebrew}))"
    words = (
        rf"(?:{katakana}(?:(?:{joiner})*{katakana})*"
        rf"|(?:{number}(?:(?:(?:{joiner})*|{mid_number}){number})*"
        rf"|{letter}(?:{between}{letter})*(?:(?<={hebrew}){quote}(?!{letter}))?)+)"
    )
    run = rf"(?:{joiner})*{words}(?:(?:{joiner})+{words})*(?:{joiner})*"
    complex_script = unit(r"\p{LB=SA}")
    picture = (
        rf"[\p{{Extended_Pictographic}}{_SKIN_TONES}{_characters(_LUCENE_UNICODE['picture'])}]"
    )
    emoji = (
        rf"\p{{Regional_Indicator}}{{2}}{marks}"
        r"|[#*]\ufe0f?\u20e3"
        rf"|{picture}(?:[\p{{WB=Extend}}\p{{WB=Format}}]*(?:\u200d{picture}?)?)*"
    )
    one_each = unit(r"\p{Script=Han}\p{Script=Hiragana}")
    return rf"{emoji}|{run}|(?:{complex_script})+|{one_each}"


_TOKEN = regex.compile(_word_pattern(), regex.VERSION1)
_NO_WORD = regex.compile(f"[{_characters(_LUCENE_UNICODE['no_word'])}]", regex.VERSION1)


def split_words(text: str) -> list[str]:
    """The words of a text, in order and as they stand."""
    words = []
    if not text.isascii():
        text = _NO_WORD.sub(" ", text)
    for match in _TOKEN.finditer(text):
        word = match.group()
        words += [word[i : i + MAX_LENGTH] for i in range(0, len(word), MAX_LENGTH)]
    return words


def _lower(word: str) -> str:
    """The word in lower case, character by character, as Java does it.

    Python makes two characters of a Turkish one, and looks at the neighbors of a sigma.
    """
    if word.isascii():
        return word.lower()
    return "".join(character.lower()[0] for character in word)


def search_terms(text: str) -> list[str]:
    """The search terms of a text, in order, repeated ones included."""
    terms = []
    for word in split_words(text):
        if word.endswith(_POSSESSIVE):
            word = word[:-2]
        word = _lower(word)
        if word not in STOP_WORDS:
            terms.append(stem(word))
    return terms
