"""Text to search terms, as Lucene's English analysis does it: words by Unicode's rules (UAX #29), no possessive 's, lower case,
no stop words, Porter's stems.
"""

from __future__ import annotations

import regex

from envs.webshop.porter import stem

_LUCENE_STOPS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was will with"
)
STOP_WORDS = frozenset(_LUCENE_STOPS.split())
"""Lucene's list for English."""

MAX_LENGTH = 255
"""Characters of a token; a longer one is cut into several."""

_POSSESSIVE = ("'s", "’s", "＇s", "'S", "’S", "＇S")


def _word_pattern() -> str:
    """Word-break rules of Lucene's StandardTokenizer. Each character takes the marks after it along."""

    def unit(characters: str) -> str:
        return rf"[{characters}][\p{{WB=Extend}}\p{{WB=Format}}\p{{WB=ZWJ}}]*+"

    letter = unit(r"\p{WB=ALetter}\p{WB=Hebrew_Letter}")
    hebrew = unit(r"\p{WB=Hebrew_Letter}")
    number = unit(r"\p{WB=Numeric}０-９")
    katakana = unit(r"\p{WB=Katakana}")
    mid_letter = unit(r"\p{WB=MidLetter}\p{WB=MidNumLet}\p{WB=Single_Quote}")
    mid_number = unit(r"\p{WB=MidNum}\p{WB=MidNumLet}\p{WB=Single_Quote}")
    quote, double_quote, joiner = unit(r"\p{WB=Single_Quote}"), unit(r"\p{WB=Double_Quote}"), unit(r"\p{WB=ExtendNumLet}")
    between = rf"(?:(?:{joiner})*|{mid_letter}|(?<={hebrew}){double_quote}(?={hebrew}))"
    words = (
        rf"(?:{katakana}(?:(?:{joiner})*{katakana})*"
        rf"|(?:{number}(?:(?:(?:{joiner})*|{mid_number}){number})*"
        rf"|{letter}(?:{between}{letter})*(?:(?<={hebrew}){quote}(?!{letter}))?)+)"
    )
    run = rf"(?:{joiner})*{words}(?:(?:{joiner})+{words})*(?:{joiner})*"
    complex_script = unit(r"\p{LB=SA}")
    picture = r"[\p{Extended_Pictographic}--[©®™〰〽]]"
    emoji = (
        r"\p{Regional_Indicator}{2}"
        r"|[0-9#*]\ufe0f?\u20e3"
        rf"|(?:{picture}|[©®™〰〽]\ufe0f)[\p{{WB=Extend}}]*(?:\u200d{picture}[\p{{WB=Extend}}]*)*"
    )
    one_each = unit(r"\p{Script=Han}\p{Script=Hiragana}")
    return rf"{emoji}|{run}|(?:{complex_script})+|{one_each}"


_TOKEN = regex.compile(_word_pattern(), regex.VERSION1)


def tokens(text: str) -> list[str]:
    """The words of a text, in order and as they stand."""
    found = []
    for match in _TOKEN.finditer(text):
        word = match.group()
        found += [word] if len(word) <= MAX_LENGTH else [word[i : i + MAX_LENGTH] for i in range(0, len(word), MAX_LENGTH)]
    return found


def terms(text: str) -> list[str]:
    """The search terms of a text, in order, repeated ones included."""
    found = []
    for token in tokens(text):
        word = (token[:-2] if token.endswith(_POSSESSIVE) else token).lower()
        if word not in STOP_WORDS:
            found.append(stem(word))
    return found
