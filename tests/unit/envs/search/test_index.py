"""BM25 in process finds what a slow, obvious BM25 finds."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.search.facts import load_passages
from envs.search.index import K1, B, BM25Index, tokenize

WORDS = ("paro", "bhutan", "capital", "thimphu", ".bt", "the")
SMALL = BM25Index(["The capital of Bhutan is Thimphu.", ""])
TEXTS = st.lists(
    st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=12
)


def test_many_are_the_same_as_a_few_at_a_time():
    index = BM25Index(load_passages())
    many = index.search("capital of the country in Asia", 500)
    assert len(many) > 300
    assert many[:32] == index.search("capital of the country in Asia", 32)
    assert many == sorted(many, key=lambda hit: (-hit[1], hit[0]))


def slow_scores(texts: list[str], query: str) -> list[float]:
    """Lucene's BM25, written down."""
    documents = [Counter(tokenize(text)) for text in texts]
    lengths = [sum(document.values()) for document in documents]
    mean = sum(lengths) / len(texts)
    scores = []
    for document, length in zip(documents, lengths, strict=True):
        score = 0.0
        for word in tokenize(query):
            spread = sum(word in other for other in documents)
            idf = math.log(1 + (len(texts) - spread + 0.5) / (spread + 0.5))
            if document[word]:
                score += idf * document[word] / (document[word] + K1 * (1 - B + B * length / mean))
        scores.append(score)
    return scores


@given(TEXTS, st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join), st.integers(1, 15))
def test_the_best_passages_have_the_greatest_scores_best_first(texts, query, topk):
    scores = slow_scores(texts, query)
    found = BM25Index(texts).search(query, topk)
    expected = sorted((score for score in scores if score > 0), reverse=True)[:topk]
    assert [score for _, score in found] == pytest.approx(expected)
    assert [scores[number] for number, _ in found] == pytest.approx(expected)


@given(TEXTS, st.sampled_from(WORDS))
def test_of_equal_passages_the_earlier_is_first(texts, query):
    twice = [text for text in texts for _ in range(2)]
    found = BM25Index(twice).search(query, len(twice))
    assert [number % 2 for number, _ in found] == [0, 1] * (len(found) // 2)


@given(st.text(), st.integers(1, 5))
def test_no_query_breaks_it(query, topk):
    assert len(SMALL.search(query, topk)) <= topk


def test_without_a_word_in_common_nothing_is_found():
    assert (
        BM25Index(["The capital of Bhutan is Thimphu."]).retrieve("the highest mountain", 3) == []
    )


def test_accents_and_case_make_no_difference():
    assert BM25Index(["São Tomé", "other"]).retrieve("SAO tome", 1) == ["São Tomé"]


def test_a_domain_is_not_the_word_without_its_dot():
    assert tokenize("It is at Vienna: .at, U.S.") == ["it", "at", "vienna", ".at", "u", "s"]


def test_an_index_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no passages"):
        BM25Index([])


def test_the_corpus_that_comes_with_the_project_is_large_and_its_passages_short():
    assert len(load_passages()) >= 10_000
    assert len(set(load_passages())) == len(load_passages())
    assert max(len(passage.split()) for passage in load_passages()) <= 25
