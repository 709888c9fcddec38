"""Perplexity under a small n-gram model of words, with hashed counts."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mads.data.cutting import batches
from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.base import FittedLabeller
from mads.label.calibration import quantile_bins, quantile_edges, quantile_names
from mads.label.sampling import choose, content_ids, hash_of, read_texts, up_to
from mads.label.words import split_words

_U64 = np.uint64
_MIX, _STEP = _U64(0x9E3779B97F4A7C15), _U64(0xBF58476D1CE4E5B9)
_END = _U64(0x94D049BB133111EB)  # the hash of the end of a document
_FEWEST = 20


@dataclass(frozen=True)
class _Grams:
    """The n-grams that end at each word or document end of a batch, all orders in one row.

    document: int64 [w + n], of each place; slot: int64 [order, w + n], where the place's k-gram is counted, -1 where it would
    begin before its document
    """

    document: np.ndarray
    slot: np.ndarray


class NGramPerplexity(FittedLabeller):
    """Bits per word, the logarithm to base 2 of the perplexity, under an n-gram model of lower-case words, in quantile bins.

    Every level is smoothed by the one below (a hierarchical Dirichlet prior; MacKay and Peto 1995),

        p_k(w | c) = (count(c w) + smoothing p_(k-1)(w | c')) / (count(c) + smoothing),

    where c' is c without its first word and p_0 = 1 / columns: an unseen word is one of `columns` hash values. A document ends
    with an end symbol that is predicted too. N-grams are counted by a hash into a table of `columns` counts for each order, so
    memory does not grow with the text.

    A document that the model was fitted on is scored with its own counts taken out, so that its label does not depend on whether
    it was in the sample.

    Args:
        good_paths: fit on this text, in the formats of data=files, and not on the pool; bins are of the pool either way.
        text_field: of the records in good_paths.
        order: longest n-gram.
        columns: counts an order, a power of two, several times the different n-grams of the fitted text: n-grams that share a
            count look more frequent than they are.
        smoothing: weight of the level below, in counts.
        bins: number of labels.
        seed: of the sample.
        max_fit_megabytes: most text to count, chosen by a hash of the documents' text.
    """

    name = "perplexity"

    def __init__(
        self,
        good_paths: Sequence[str] = (),
        text_field: str = "text",
        order: int = 2,
        columns: int = 1 << 22,
        smoothing: float = 4.0,
        bins: int = 5,
        seed: int = 0,
        max_fit_megabytes: float = 16.0,
    ):
        if order < 1 or bins < 2 or smoothing <= 0 or columns < 2 or columns & (columns - 1):
            raise DataError(
                f"order={order} must be at least 1, bins={bins} at least 2, smoothing={smoothing} positive, columns={columns} a "
                "power of two"
            )
        self.good_paths, self.text_field = list(good_paths), text_field
        self.order, self.columns, self.smoothing, self.bins = order, columns, float(smoothing), bins
        self.seed, self.max_fit_megabytes = seed, max_fit_megabytes

    def parameters(self) -> dict[str, Any]:
        return {
            "text_field": self.text_field,
            "order": self.order,
            "columns": self.columns,
            "smoothing": self.smoothing,
            "bins": self.bins,
            "seed": self.seed,
            "max_fit_megabytes": self.max_fit_megabytes,
        }

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: with fewer than 20 different documents, or good_paths that cannot be read.
        """
        pool = choose(list({d.text: d for d in documents}.values()), len(documents), self.seed, "perplexity-fit")
        text = pool
        if self.good_paths:
            given = {d.text: d for d in read_texts(self.good_paths, self.text_field)}
            text = choose(list(given.values()), len(given), self.seed, "perplexity-fit")
        text, pool = (list(up_to(d, self.max_fit_megabytes * 1e6)) for d in (text, pool))
        if min(len(text), len(pool)) < _FEWEST:
            raise DataError(f"an n-gram model needs at least {_FEWEST} different documents, got {min(len(text), len(pool))}")
        self._counts = np.zeros((self.order, self.columns), dtype=np.uint32)
        self._own = np.sort(content_ids(text))
        for part in batches([d.text for d in text]):
            grams = self._grams([d.text for d in text[part]])
            for counts, slot in zip(self._counts, grams.slot):
                slots, found = np.unique(slot[slot >= 0], return_counts=True)
                counts[slots] += found.astype(np.uint32)
        self._total = int(self._counts[0].sum())
        values = self._bits(pool)
        self._edges = quantile_edges(values, self.bins)
        self._learned = {
            "fit_documents": len(text),
            "fit_tokens": self._total,
            "fit_hash": hash_of(text),
            "mean_bits_per_word": round(float(values.mean()), 4),
        }
        self._fitted = True

    def _grams(self, texts: Sequence[str]) -> _Grams:
        batch = split_words(texts)
        hashes = np.fromiter((zlib.crc32(t.encode("utf-8", "replace")) for t in batch.terms), _U64, len(batch.vocabulary))
        ends = np.cumsum(np.bincount(batch.document, minlength=batch.texts))  # of each document's words
        word = np.insert((hashes + _U64(1))[batch.word], ends, _END)
        document = np.insert(batch.document, ends, np.arange(batch.texts))
        bits = _U64(64 - (self.columns.bit_length() - 1))
        slot = np.full((self.order, len(word)), -1, dtype=np.int64)
        gram = np.zeros(len(word), _U64)  # of the k words that end here
        with np.errstate(over="ignore"):  # arithmetic modulo 2**64
            for k in range(self.order):
                before = np.concatenate([np.zeros(min(1, len(word)), _U64), gram[:-1]]) if k else gram
                gram = (before ^ word) * _MIX + _U64(k)
                gram ^= gram >> _U64(29)
                gram *= _STEP
                inside = document[k:] == document[: len(document) - k]
                slot[k, k:][inside] = (gram[k:][inside] >> bits).astype(np.int64)
        return _Grams(document, slot)

    def _bits(self, documents: Sequence[Document]) -> np.ndarray:
        """Bits per word and document end, float64 [n]."""
        found = [np.zeros(0)]
        for part in batches([d.text for d in documents]):
            grams = self._grams([d.text for d in documents[part]])
            bits = -np.log2(self._probabilities(grams, np.isin(content_ids(documents[part]), self._own)))
            sums = np.add.reduceat(bits, np.flatnonzero(np.diff(grams.document, prepend=-1)))
            found.append(sums / np.bincount(grams.document))
        return np.concatenate(found)

    def _probabilities(self, grams: _Grams, own: np.ndarray) -> np.ndarray:
        """p of every word and document end given the words before it, float64. own: bool, of each document of the batch."""
        ours = own[grams.document]
        context = np.full(len(ours), float(self._total))
        sizes = np.bincount(grams.document)
        context -= np.where(ours, sizes[grams.document], 0)
        p = np.full(len(ours), 1.0 / self.columns)
        shorter = context  # counts of the gram that is one word shorter, at each place
        for k in range(self.order):
            there = grams.slot[k] >= 0
            count = self._count(k, grams, there, ours)
            if k:  # of the words before, as counted at the place before: every word has a follower, be it the end
                context = np.concatenate([[0.0], shorter[:-1]])
            longer = (np.minimum(count, context) + self.smoothing * p) / (context + self.smoothing)
            p = np.where(there, longer, p)  # at the beginning of a document the context is shorter
            shorter = count
        return p

    def _count(self, k: int, grams: _Grams, there: np.ndarray, ours: np.ndarray) -> np.ndarray:
        """How often each place's k-gram was counted, without its own document, float64; 0 where there is none."""
        slot = grams.slot[k]
        count = np.where(there, self._counts[k][slot], 0).astype(np.float64)
        mine = there & ours
        keys = grams.document[mine] * np.int64(self.columns) + slot[mine]
        _, which, times = np.unique(keys, return_inverse=True, return_counts=True)
        count[mine] -= times[which]
        return count

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
        """(bin uint16 [n], bits per word float32 [n]).

        Raises:
            RuntimeError: before `fit`.
        """
        self._require_fit()
        values = self._bits(documents).astype(np.float32)
        return quantile_bins(values, self._edges), values

    def _facts(self) -> dict[str, Any]:
        return {"learned": self._learned, "total": self._total}

    def _arrays(self) -> dict[str, np.ndarray]:
        slots = np.flatnonzero(self._counts)  # most are 0
        return {"slots": slots, "counts": self._counts.ravel()[slots], "own": self._own, "edges": self._edges}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._learned, self._total = facts["learned"], facts["total"]
        self._counts = np.zeros((self.order, self.columns), dtype=np.uint32)
        self._counts.ravel()[arrays["slots"]] = arrays["counts"]
        self._own, self._edges = arrays["own"], arrays["edges"]

    def schema(self) -> AttributeSchema:
        self._require_fit()
        provenance = self.provenance(**self._learned)
        return AttributeSchema(self.name, quantile_names(self._edges), continuous=True, provenance=provenance)
