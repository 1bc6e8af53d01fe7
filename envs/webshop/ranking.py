"""Ranking as Lucene does it: BM25 with the length of a document kept in one byte, sums of 32-bit
scores, ties by document order."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from envs.webshop.analysis import terms

K1 = np.float32(0.9)
B = np.float32(0.4)


def length_to_byte(length: int) -> int:
    """Lucene's SmallFloat.intToByte4: exact up to 39, then four significant bits, rounded down."""
    return length if length < 24 else 24 + _to_four_bits(length - 24)


def byte_to_length(code: int) -> int:
    """The length that a byte stands for: the smallest one that is coded so."""
    return code if code < 24 else 24 + _from_four_bits(code - 24)


def _to_four_bits(value: int) -> int:
    if value < 8:
        return value
    shift = value.bit_length() - 4
    return (value >> shift) & 7 | (shift + 1) << 3


def _from_four_bits(code: int) -> int:
    shift = (code >> 3) - 1
    return code if shift < 0 else (code & 7 | 8) << shift


class Index:
    """The postings of a list of texts. Read-only once made, so that forked processes share it."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(terms(text)) for text in texts]
        lengths = [count.total() for count in counts]
        self.size = len(texts)
        # A document without terms does not count, neither for idf nor for the mean length.
        documents = sum(length > 0 for length in lengths)
        mean = np.float32(sum(lengths) / documents) if documents else np.float32(1)
        norms = np.array([byte_to_length(length_to_byte(length)) for length in lengths], np.float32)
        norms = K1 * ((np.float32(1) - B) + B * norms / mean)
        postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for document, count in enumerate(counts):
            for term, frequency in count.items():
                postings[term].append((document, frequency))
        self._postings: dict[str, tuple[np.ndarray, np.ndarray, np.float32]] = {}
        """term -> (documents, int32; saturated frequencies, float32; idf)."""
        for term, found in postings.items():
            where = np.array([document for document, _ in found], np.int32)
            frequency = np.array([frequency for _, frequency in found], np.float64)
            idf = np.float32(math.log(1 + (documents - len(found) + 0.5) / (len(found) + 0.5)))
            self._postings[term] = (
                where,
                (frequency / (frequency + norms[where])).astype(np.float32),
                idf,
            )
        self.search = lru_cache(maxsize=4096)(self._search)
        """See `_search`; the last few thousand queries are remembered."""

    def _search(self, query: str, limit: int) -> tuple[int, ...]:
        """The `limit` best documents, best first.

        A term that the query repeats counts as often; without a match, nothing is found.
        """
        scores = np.zeros(self.size)
        matched = False
        for term, count in Counter(terms(query)).items():
            if (posting := self._postings.get(term)) is not None:
                where, saturation, idf = posting
                scores[where] += np.float32(count) * idf * saturation
                matched = True
        if not matched:
            return ()
        scores = scores.astype(np.float32)
        found = np.flatnonzero(scores)
        if len(found) > limit:
            # Keep all that tie with the last one, so that document order decides.
            last = np.partition(scores[found], -limit)[-limit]
            found = found[scores[found] >= last]
        return tuple(found[np.argsort(-scores[found], kind="stable")][:limit].tolist())
