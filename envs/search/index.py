"""Retrieval in this process: BM25 over passages that fit in memory.

Own postings in numpy, because the usual library (bm25s) imports numba wherever vLLM is installed
(half a second, in every process) and leaves equal scores in no fixed order; a task must be the same
in every process. Weights are computed once, as there.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

# Lucene's default is 1.2 and 0.75; these are Anserini's for passages.
K1 = 0.9
B = 0.4

_FEW = 32
"""Passages up to which the best are looked for one by one."""

# A dot before a word belongs to it: ".at" is a domain, "at" is nothing.
_WORD = re.compile(r"(?<!\w)\.\w+|\w+")

# In almost every passage, so that they cost time and tell nothing.
_STOP_WORDS = frozenset(("a", "an", "and", "in", "is", "of", "the", "was"))


def tokenize(text: str) -> list[str]:
    """Words in lower case, without accents and without the most frequent ones."""
    if not text.isascii():
        text = "".join(
            char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char)
        )
    return [word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]


class BM25Index:
    """Passages, and for each word the passages that it is in.

    It is immutable, so threads and forked processes share it.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts: tuple[str, ...] = tuple(texts)
        if not self.texts:
            raise ValueError("there are no passages to index")
        self._terms: dict[str, int] = {}
        term_ids = [
            [self._terms.setdefault(word, len(self._terms)) for word in tokenize(text)]
            for text in self.texts
        ]
        size = len(self.texts)
        lengths = np.array([len(passage) for passage in term_ids])
        passage_of_word = np.repeat(np.arange(size), lengths)
        term_of_word = np.array(list(itertools.chain(*term_ids)), dtype=np.int64)
        # One number for each pair, in the order of terms, then passages.
        pair_of_word = term_of_word * size + passage_of_word
        pairs, frequency = np.unique(pair_of_word, return_counts=True)
        term, passage = np.divmod(pairs, size)
        passages_with_term = np.bincount(term, minlength=len(self._terms))
        idf = np.log1p((size - passages_with_term + 0.5) / (passages_with_term + 0.5))
        norm = K1 * (1 - B + B * lengths / max(lengths.mean(), 1e-9))
        self._weights = idf[term] * frequency / (frequency + norm[passage])
        self._passages = passage.astype(np.int32)
        self._bounds = np.concatenate([[0], np.cumsum(passages_with_term)])

    def search(self, query: str, topk: int) -> list[tuple[int, float]]:
        """(number of the passage, score) of the best passages, at most `topk`, best first.

        Each has a word of the query. Of equal scores the earlier passage comes first.
        """
        scores = np.zeros(len(self.texts))
        for word in tokenize(query):
            term = self._terms.get(word)
            if term is not None:
                postings = slice(self._bounds[term], self._bounds[term + 1])
                scores[self._passages[postings]] += self._weights[postings]
        if topk > _FEW:
            order = np.argsort(-scores, kind="stable")[:topk]
            return [(int(number), float(scores[number])) for number in order if scores[number] > 0]
        # For the few that are wanted, looking for the greatest again and again is faster than any
        # sorting.
        best: list[tuple[int, float]] = []
        for _ in range(min(topk, len(self.texts))):
            first = int(scores.argmax())
            if scores[first] <= 0:
                break
            best.append((first, float(scores[first])))
            scores[first] = 0
        return best

    def retrieve(self, query: str, topk: int) -> list[str]:
        """The texts of the best passages. See `envs.search.remote.Retriever`."""
        return [self.texts[number] for number, _ in self.search(query, topk)]
