"""Perplexity under a language model, whatever the model is: bits per byte in quantile bins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.base import FittedLabeller
from mads.label.calibration import quantile_bins, quantile_edges, quantile_names
from mads.label.sampling import choose


class BitsPerByte(FittedLabeller):
    """Base class. A subclass has `nats_and_bytes`; its bins hold equal shares of the fit sample.

    value = -1 / (B ln 2) * sum of ln p(token i | tokens before i) over the tokens after the first, where B is the number of UTF-8
    bytes that these tokens stand for; a document of one token has value 0.
    """

    name = "perplexity"

    def __init__(self, bins: int, seed: int, max_fit_documents: int):
        if bins < 2:
            raise DataError(f"bins={bins} must be at least 2")
        self.bins, self.seed, self.max_fit_documents = bins, seed, max_fit_documents

    def parameters(self) -> dict[str, Any]:
        return {"bins": self.bins, "seed": self.seed, "max_fit_documents": self.max_fit_documents}

    def nats_and_bytes(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(negative log-likelihood of the tokens after the first, bytes that they stand for), [n] each."""
        raise NotImplementedError

    def _bits(self, documents: Sequence[Document]) -> np.ndarray:
        """Bits per byte, float32 [n].

        Raises:
            DataError: if the model gives a value that is not finite.
        """
        nats, size = self.nats_and_bytes([d.text for d in documents])
        values = np.asarray(nats, dtype=np.float64) / (math.log(2) * np.maximum(np.asarray(size, dtype=np.float64), 1.0))
        if not np.isfinite(values).all():
            bad = documents[int(np.argmin(np.isfinite(values)))]
            raise DataError(f"the model gives {bad.origin}:{bad.line} a perplexity that is not finite; its weights are damaged")
        return values.astype(np.float32)

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: with fewer different documents than bins.
        """
        chosen = choose(list({d.text: d for d in documents}.values()), self.max_fit_documents, self.seed, "model-perplexity")
        if len(chosen) < self.bins:
            raise DataError(f"{len(chosen)} different documents are too few for {self.bins} bins")
        self._edges = quantile_edges(self._bits(chosen), self.bins)
        self._fitted = True

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
        """(bin uint16 [n], bits per byte float32 [n]).

        Raises:
            RuntimeError: before `fit`.
            DataError: if the model gives a value that is not finite.
        """
        self._require_fit()
        values = self._bits(documents)
        return quantile_bins(values, self._edges), values

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"edges": self._edges}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._edges = arrays["edges"]

    def schema(self) -> AttributeSchema:
        self._require_fit()
        return AttributeSchema(self.name, quantile_names(self._edges), continuous=True, provenance=self.provenance())
