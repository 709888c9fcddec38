"""Log importance weights of data selection by importance resampling (DSIR)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mads.data.cutting import batches
from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.base import FittedLabeller
from mads.label.calibration import quantile_bins, quantile_edges, quantile_names
from mads.label.sampling import choose, hash_of, read_texts, up_to

_WORD = re.compile(r"\w+|[^\w\s]+")  # runs of letters and digits, runs of other signs: NLTK's WordPunctTokenizer
_FEWEST = 20


@dataclass(frozen=True)
class _Grams:
    """The n-grams of some texts. document: int64 [g], ascending inside of each order n; bucket: int64 [g]."""

    document: np.ndarray
    bucket: np.ndarray


class DSIRImportance(FittedLabeller):
    """log p_target(x) - log p_raw(x) under bags of hashed n-grams, in quantile bins (Xie et al. 2023, arXiv 2302.03169, sec. 4).

    z(x) counts the n-grams of all orders up to `order` of lower-case words in `buckets` buckets; p and q are the buckets' shares
    of the target's and of the pool's n-grams:

        value = sum_j z_j(x) (log(p_j + smoothing) - log(q_j + smoothing))

    As in the paper the sum is not divided by the number of n-grams, so that long documents have extreme values and what is taken
    by Gumbel top-k is nearly the top; `per_ngram` divides it. Words, buckets (SHA-256 modulo `buckets`) and smoothing are those
    of the authors' package data-selection, whose weights these are. Its lower limit on the length of examples is left out.

    The target is the direction part of the directory's reference tasks (never the audit or report part, which judge), or
    `target_paths`.

    Args:
        target_paths: files, folders or globs of target text, in the formats of data=files; empty: the references.
        text_field: of the records in target_paths.
        buckets: of the hashed n-grams.
        order: longest n-gram.
        smoothing: added to each bucket's share, in the place of unseen n-grams' probability.
        per_ngram: divide by the number of n-grams.
        bins: number of labels.
        seed: of the sample of the pool.
        max_fit_megabytes: most text of the pool to count, chosen by a hash of the documents' text.
    """

    name = "dsir"

    def __init__(
        self,
        target_paths: Sequence[str] = (),
        text_field: str = "text",
        buckets: int = 10_000,
        order: int = 2,
        smoothing: float = 1e-8,
        per_ngram: bool = False,
        bins: int = 5,
        seed: int = 0,
        max_fit_megabytes: float = 64.0,
    ):
        if buckets < 2 or order < 1 or bins < 2 or smoothing <= 0:
            raise DataError(
                f"buckets={buckets} and bins={bins} must be at least 2, order={order} at least 1, smoothing={smoothing} positive"
            )
        self.target_paths, self.text_field = list(target_paths), text_field
        self.buckets, self.order, self.smoothing, self.per_ngram = buckets, order, float(smoothing), per_ngram
        self.bins, self.seed, self.max_fit_megabytes = bins, seed, max_fit_megabytes
        self.learns_references = not self.target_paths
        self._references: list[str] = []

    def parameters(self) -> dict[str, Any]:
        return {
            "text_field": self.text_field,
            "buckets": self.buckets,
            "order": self.order,
            "smoothing": self.smoothing,
            "per_ngram": self.per_ngram,
            "bins": self.bins,
            "seed": self.seed,
            "max_fit_megabytes": self.max_fit_megabytes,
        }

    def see_references(self, texts: Sequence[str]) -> None:
        """The target, where no other is given."""
        self._references = list(texts)

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: fewer than 20 different documents or target texts, target_paths that cannot be read, or no target at all.
        """
        target = [Document(text, "", "references", i) for i, text in enumerate(self._references)]
        if self.target_paths:
            target = read_texts(self.target_paths, self.text_field)
        target = list({d.text: d for d in target}.values())
        pool = choose(list({d.text: d for d in documents}.values()), len(documents), self.seed, "dsir-fit")
        pool = list(up_to(pool, self.max_fit_megabytes * 1e6))
        for what, found in (("target text", target), ("the pool", pool)):
            if len(found) < _FEWEST:
                raise DataError(
                    f"importance weights need at least {_FEWEST} different documents of {what}, there are {len(found)}; give "
                    "target_paths=[...] or reference tasks, or more documents"
                )
        p, q = self._counts(target), self._counts(pool)
        self._weights = np.log(p / p.sum() + self.smoothing) - np.log(q / q.sum() + self.smoothing)
        values = self._values(pool)
        self._edges = quantile_edges(values, self.bins)
        self._learned = {
            "target": "target_paths" if self.target_paths else "direction part of the references",
            "target_texts": len(target),
            "target_ngrams": int(p.sum()),
            "target_hash": hash_of(target),
            "fit_documents": len(pool),
            "fit_ngrams": int(q.sum()),
            "mean": round(float(values.mean()), 4),
        }
        self._fitted = True

    def _counts(self, documents: Sequence[Document]) -> np.ndarray:
        """int64 [buckets]. Raises DataError for texts without a word."""
        counts = np.zeros(self.buckets, dtype=np.int64)
        for part in batches([d.text for d in documents]):
            counts += np.bincount(self._grams([d.text for d in documents[part]]).bucket, minlength=self.buckets)
        if not counts.any():
            raise DataError(f"{len(documents)} documents hold no word, the first is {documents[0].origin}")
        return counts

    def _grams(self, texts: Sequence[str]) -> _Grams:
        """The hash of an n-gram is that of its words joined by blanks; each different one is hashed once."""
        words = [_WORD.findall(text.lower()) for text in texts]
        document = np.repeat(np.arange(len(texts)), [len(own) for own in words])
        vocabulary, word = _numbered(pa.array([w.encode("utf-8", "replace") for own in words for w in own], pa.binary()))
        names, gram = vocabulary, word
        found = [(document, self._hashes(names)[gram])]
        for n in range(2, self.order + 1):  # an n-gram is one that is a word shorter, and the next word
            places = max(len(word) - n + 1, 0)
            pairs, gram = _numbered(pa.array(gram[:places] * np.int64(len(vocabulary)) + word[n - 1 :]))
            names = [b"%b %b" % (names[pair // len(vocabulary)], vocabulary[pair % len(vocabulary)]) for pair in pairs]
            inside = document[n - 1 :] == document[:places]
            found.append((document[:places][inside], self._hashes(names)[gram[inside]]))
        return _Grams(*(np.concatenate(columns) for columns in zip(*found)))

    def _hashes(self, names: Sequence[bytes]) -> np.ndarray:
        digests = (hashlib.sha256(name).digest() for name in names)
        return np.fromiter((int.from_bytes(digest, "big") % self.buckets for digest in digests), np.int64, len(names))

    def _values(self, documents: Sequence[Document]) -> np.ndarray:
        """float64 [n]. A document's terms are added one after the other, so that no other document changes a bit."""
        found = [np.zeros(0)]
        for part in batches([d.text for d in documents]):
            texts = [d.text for d in documents[part]]
            grams = self._grams(texts)
            sums = np.bincount(grams.document, weights=self._weights[grams.bucket], minlength=len(texts))
            sizes = np.bincount(grams.document, minlength=len(texts)) if self.per_ngram else 1
            found.append(sums / np.maximum(sizes, 1))
        return np.concatenate(found)

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
        """(bin uint16 [n], log importance weight float32 [n]).

        Raises:
            RuntimeError: before `fit`.
        """
        self._require_fit()
        values = self._values(documents).astype(np.float32)
        return quantile_bins(values, self._edges), values

    def _facts(self) -> dict[str, Any]:
        return self._learned

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"weights": self._weights, "edges": self._edges}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._learned, self._weights, self._edges = facts, arrays["weights"], arrays["edges"]

    def schema(self) -> AttributeSchema:
        self._require_fit()
        provenance = self.provenance(**self._learned)
        return AttributeSchema(self.name, quantile_names(self._edges), continuous=True, provenance=provenance)


def _numbered(values: pa.Array) -> tuple[list, np.ndarray]:
    """(the different values in order of appearance, int64 [n] which of them each one is)."""
    encoded = pc.dictionary_encode(values)
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
