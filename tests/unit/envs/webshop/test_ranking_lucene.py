"""Our search beside Lucene's own answers.

They were recorded from Lucene 8.11.0 (docs/measurements/webshop.md says how).
"""

from __future__ import annotations

import json

import pytest

from envs.webshop.analysis import search_terms
from envs.webshop.ranking import LuceneIndex
from tests.fixtures import ROOT

RECORDED = json.loads((ROOT / "tests" / "data" / "lucene.json").read_text())


@pytest.mark.parametrize("number", range(len(RECORDED["texts"])))
def test_a_text_has_the_terms_that_lucene_finds(number: int) -> None:
    """A text has the terms that Lucene finds in it.

    It is of words of ten scripts with punctuation, numbers, symbols and emoji between and inside
    them, in random order.
    """
    assert " ".join(search_terms(RECORDED["texts"][number])) == RECORDED["terms"][number]


def test_documents_come_in_lucenes_order() -> None:
    index = LuceneIndex(RECORDED["texts"])
    assert [list(index.search(query, 50)) for query in RECORDED["queries"]] == RECORDED["found"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("brand® name", ["brand", "®", "name"]),
        ("acme™ ★", ["acm", "™", "★"]),
        ("© 2020", ["©", "2020"]),
        ("• item → x", ["item", "x"]),
        ("1️⃣2️⃣", ["1️⃣2️⃣"]),
        ("a🏽", ["🏽"]),
        ("👩🏽‍🚀👍", ["👩🏽‍🚀", "👍"]),
        ("İstanbul ΟΔΟΣ", ["istanbul", "οδοσ"]),
    ],
)
def test_symbols_are_terms_where_they_are_in_lucene(text: str, expected: list[str]) -> None:
    assert search_terms(text) == expected
