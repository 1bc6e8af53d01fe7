"""Ranking as Lucene does it.

BM25 with the length of a document kept in one byte, sums of 32-bit scores, ties by document order.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from envs.webshop.analysis import search_terms

K1 = np.float32(0.9)
B = np.float32(0.4)


def length_to_byte(length: int) -> int:
    """Lucene's SmallFloat.intToByte4: exact up to 39, then four significant bits, rounded down."""
    if length < 24:
        return length
    return 24 + _to_four_bits(length - 24)


def byte_to_length(code: int) -> int:
    """The length that a byte stands for: the smallest one that is coded so."""
    if code < 24:
        return code
    return 24 + _from_four_bits(code - 24)


def _to_four_bits(value: int) -> int:
    if value < 8:
        return value
    shift = value.bit_length() - 4
    return (value >> shift) & 7 | (shift + 1) << 3


def _from_four_bits(code: int) -> int:
    shift = (code >> 3) - 1
    if shift < 0:
        return code
    return (code & 7 | 8) << shift


class _Posting(NamedTuple):
    """The documents with a term (int32), its saturated frequency in each (float32), and its idf."""

    documents: np.ndarray
    saturation: np.ndarray
    idf: np.float32


class LuceneIndex:
    """The postings of a list of texts. Read-only once made, so that forked processes share it."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(search_terms(text)) for text in texts]
        lengths = [count.total() for count in counts]
        # A document without terms does not count, neither for idf nor for the mean length.
        document_count = sum(length > 0 for length in lengths)
        norms = _length_norms(lengths, document_count)
        frequencies: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for document, count in enumerate(counts):
            for term, frequency in count.items():
                frequencies[term].append((document, frequency))
        self.size = len(texts)
        self._postings: dict[str, _Posting] = {}
        for term, pairs in frequencies.items():
            documents = np.array([document for document, _ in pairs], np.int32)
            frequency = np.array([frequency for _, frequency in pairs], np.float64)
            saturation = (frequency / (frequency + norms[documents])).astype(np.float32)
            idf = math.log(1 + (document_count - len(pairs) + 0.5) / (len(pairs) + 0.5))
            self._postings[term] = _Posting(documents, saturation, np.float32(idf))
        # The last few thousand queries are remembered.
        self.search = lru_cache(maxsize=4096)(self._search)

    def _search(self, query: str, limit: int) -> tuple[int, ...]:
        """The `limit` best documents, best first.

        A term that the query repeats counts as often; without a match, nothing is found.
        """
        scores = np.zeros(self.size)
        matched = False
        for term, count in Counter(search_terms(query)).items():
            posting = self._postings.get(term)
            if posting is not None:
                scores[posting.documents] += np.float32(count) * posting.idf * posting.saturation
                matched = True
        if not matched:
            return ()
        scores = scores.astype(np.float32)
        documents = np.flatnonzero(scores)
        if len(documents) > limit:
            # Keep all that tie with the last one, so that document order decides.
            last_score = np.partition(scores[documents], -limit)[-limit]
            documents = documents[scores[documents] >= last_score]
        order = np.argsort(-scores[documents], kind="stable")[:limit]
        return tuple(documents[order].tolist())


def _length_norms(lengths: Sequence[int], document_count: int) -> np.ndarray:
    """BM25's normalization of each document's length, float32."""
    mean = np.float32(1)
    if document_count:
        mean = np.float32(sum(lengths) / document_count)
    coded = np.array([byte_to_length(length_to_byte(length)) for length in lengths], np.float32)
    return K1 * ((np.float32(1) - B) + B * coded / mean)
