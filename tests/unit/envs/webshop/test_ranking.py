"""Search: words as Lucene finds them, stems as it makes them, documents in its order."""

import math
import re
from collections import Counter

import numpy as np
import pytest
import snowballstemmer
from hypothesis import assume, given
from hypothesis import strategies as st

from envs.webshop.analysis import STOP_WORDS, search_terms, split_words
from envs.webshop.porter import stem
from envs.webshop.ranking import LuceneIndex, byte_to_length, length_to_byte
from tests.fixtures.examples import scale_examples

SNOWBALL = snowballstemmer.stemmer("porter")

# Where Lucene's stemmer is known to differ from the paper that Snowball implements: -bli, -logi,
# and more double consonants.
DIFFERS = re.compile(r"bl[iy]|logi|logy|([^aeioulsz])\1(ed|ing)")

VOCABULARY = (
    "red shoes shoe running run runs cotton men's men shirt 12 3.5mm the of usb-c café x-large"
)
WORDS = st.sampled_from(VOCABULARY.split())
TEXTS = st.lists(WORDS, max_size=60).map(" ".join)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Men's x-large T-shirt", ["Men's", "x", "large", "T", "shirt"]),
        ("$1,299.50 for 3.5mm", ["1,299.50", "for", "3.5mm"]),
        ("1. item (pack of 2)!", ["1", "item", "pack", "of", "2"]),
        ("a.b.c o.k. e_book __ _x_", ["a.b.c", "o.k", "e_book", "_x_"]),
        ("don’t 'quoted' rock'n'roll", ["don’t", "quoted", "rock'n'roll"]),
        ("5'10 5:30 12;30", ["5'10", "5", "30", "12;30"]),
        ("café naïve e\u0301tude", ["café", "naïve", "e\u0301tude"]),
        ("日本 テスト ひら 한국어", ["日", "本", "テスト", "ひ", "ら", "한국어"]),
        ("ภาษาไทย", ["ภาษาไทย"]),
        ('צה"ל', ['צה"ל']),
        ("nice 💕 brand™ 🇩🇪", ["nice", "💕", "brand", "™", "🇩🇪"]),
        (" \t\n -- / & ", []),
    ],
)
def test_words_are_found_by_unicode_s_rules(text, found):
    assert split_words(text) == found


def test_a_word_of_more_than_255_characters_is_cut():
    assert [len(token) for token in split_words("x" * 600)] == [255, 255, 90]


@given(st.text(max_size=60))
def test_words_are_pieces_of_the_text_in_order(text):
    position = 0
    for token in split_words(text):
        assert token
        position = text.index(token, position) + len(token)


def test_terms_have_no_stop_words_no_possessive_and_no_capitals():
    assert search_terms("The Women’s and men's SHOES for it's") == ["women", "men", "shoe"]


def test_all_of_lucene_s_33_stop_words_are_left_out():
    assert len(STOP_WORDS) == 33
    assert search_terms(" ".join(STOP_WORDS)) == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("cats", "cat"),
        ("agreed", "agre"),
        ("plastered", "plaster"),
        ("sing", "sing"),
        ("conflated", "conflat"),
        ("hopping", "hop"),
        ("falling", "fall"),
        ("filing", "file"),
        ("happy", "happi"),
        ("sky", "sky"),
        ("relational", "relat"),
        ("rational", "ration"),
        ("digitizer", "digit"),
        ("hopefulness", "hope"),
        ("formality", "formal"),
        ("electrical", "electr"),
        ("adjustment", "adjust"),
        ("adoption", "adopt"),
        ("rate", "rate"),
        ("controlling", "control"),
        ("is", "is"),
        ("as", "as"),
        ("possibly", "possibl"),
        ("technology", "technolog"),
        ("trekking", "trek"),
        ("3.5mm", "3.5mm"),
    ],
)
def test_stems_are_lucene_s(word, expected):
    assert stem(word) == expected


SUFFIXES = (
    "ed ing s es ies ational enci izer alli entli ousli ization ator alism iveness aliti iviti "
    "icate iciti ful ness able ion ll y"
)


@given(
    st.text("aeioubcdlnrsty", min_size=2, max_size=7),
    st.sampled_from(SUFFIXES.split()),
    st.sampled_from(["", "s", "ed"]),
)
def test_other_stems_are_those_of_the_paper(start, suffix, end):
    word = start + suffix + end
    assume(not DIFFERS.search(word))
    assert stem(word) == SNOWBALL.stemWord(word)


@given(st.integers(0, 100_000))
def test_a_length_keeps_its_four_highest_bits_above_24(length):
    excess = max(0, length - 24)
    dropped = max(0, excess.bit_length() - 4)
    expected = length if length < 24 else 24 + (excess >> dropped << dropped)
    assert byte_to_length(length_to_byte(length)) == expected


def test_every_byte_stands_for_a_length_of_its_own():
    lengths = [byte_to_length(code) for code in range(256)]
    assert lengths == sorted(set(lengths))
    assert [length_to_byte(length) for length in lengths] == list(range(256))
    assert lengths[-1] == 2_013_265_944  # as in Lucene


def slow_search(texts: list[str], query: str, limit: int) -> list[int]:
    """The formula, document by document, in the floating-point precision that Lucene has."""
    f32 = np.float32
    documents = [search_terms(text) for text in texts]
    filled = sum(bool(document) for document in documents)
    scores = []
    for number, document in enumerate(documents):
        total = 0.0
        for term, count in Counter(search_terms(query)).items():
            having = sum(term in other for other in documents)
            if term in document:
                idf = f32(math.log(1 + (filled - having + 0.5) / (having + 0.5)))
                mean = f32(sum(map(len, documents)) / filled)
                length = f32(byte_to_length(length_to_byte(len(document))))
                norm = f32(0.9) * ((f32(1) - f32(0.4)) + f32(0.4) * length / mean)
                frequency = document.count(term)
                total += float(f32(count) * idf * f32(frequency / (frequency + float(norm))))
        if total > 0:
            scores.append((-f32(total), number))
    return [number for _, number in sorted(scores)][:limit]


@scale_examples(150)
@given(st.lists(TEXTS, min_size=1, max_size=20), TEXTS, st.integers(1, 25))
def test_the_order_is_that_of_the_formula(texts, query, limit):
    assert list(LuceneIndex(texts).search(query, limit)) == slow_search(texts, query, limit)


def test_equal_documents_come_in_document_order():
    assert LuceneIndex(["blue hat"] * 60 + ["red hat"]).search("hat blue", 50) == tuple(range(50))


def test_lengths_that_share_a_byte_tie():
    """With exact lengths, the shorter document would be first."""
    texts = ["hat " + " ".join(["word"] * (length - 1)) for length in (41, 40)]
    assert LuceneIndex(texts).search("hat", 2) == (0, 1)


def test_a_rarer_word_weighs_more():
    assert (
        LuceneIndex(["cotton hat", "wool hat", "cotton bag", "cotton cap"]).search(
            "cotton wool", 4
        )[0]
        == 1
    )


@pytest.mark.parametrize("query", ["", "  ", "the of", "unknown", "?!"])
def test_a_query_without_a_match_finds_nothing(query):
    assert LuceneIndex(["red hat", "blue hat"]).search(query, 50) == ()
