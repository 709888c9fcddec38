"""A classifier, and perplexity under a causal language model, of Hugging Face from a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.bits import BitsPerByte
from mads.label.given import bins_between, interval_names
from mads.label.pretrained import ModelLabeller


class HuggingFaceClassifier(ModelLabeller):
    """A sequence classifier. A regression head gives a score, clipped to the edges, and its bin, as the FineWeb-Edu classifier
    does; a head of several classes gives the most likely one.

    Args:
        path: folder of the model.
        edges: of the bins of a regression score, ascending; the last bin is closed.
        max_length, batch_size, device: see LocalModel.
    """

    name = "classifier"

    def __init__(
        self,
        path: str,
        edges: Sequence[float] = (0, 1, 2, 3, 4, 5),
        max_length: int = 512,
        batch_size: int = 1,
        device: str = "cpu",
    ):
        super().__init__(path, "AutoModelForSequenceClassification", max_length, batch_size, device)
        self.edges = [float(edge) for edge in edges]
        if len(self.edges) < 2 or not all(a < b for a, b in zip(self.edges, self.edges[1:])):
            raise DataError(f"edges={list(edges)} must be two or more numbers in ascending order")
        config = self._local.model.config
        self.continuous = config.num_labels == 1
        self.labels = interval_names(self.edges) if self.continuous else tuple(map(str, config.id2label.values()))
        self._fitted = True  # there is nothing to learn

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | ({"edges": self.edges} if self.continuous else {})

    def fit(self, documents: Sequence[Document]) -> None:
        """Nothing to learn."""

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray | None]:
        """(bin or class uint16 [n], score float32 [n] or None).

        Raises:
            DataError: if the model gives a score that is not finite.
        """
        outputs = 1 if self.continuous else len(self.labels)
        logits = self._local.collect([d.text for d in documents], lambda out, ids, mask: out.logits, outputs)
        if not np.isfinite(logits).all():
            bad = documents[int(np.argmin(np.isfinite(logits).all(axis=1)))]
            raise DataError(f"the model gives {bad.origin}:{bad.line} a score that is not finite; its weights are damaged")
        if not self.continuous:
            return logits.argmax(axis=1).astype(np.uint16), None
        score = np.clip(logits[:, 0], self.edges[0], self.edges[-1])
        return bins_between(score, self.edges), score

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        pass

    def schema(self) -> AttributeSchema:
        return AttributeSchema(self.name, self.labels, continuous=self.continuous, provenance=self.provenance())


class ModelPerplexity(ModelLabeller, BitsPerByte):
    """Bits per byte of a document's beginning under a causal language model, in quantile bins.

    Args:
        path: folder of the model and its tokenizer.
        bins: number of labels, equal shares of the fit sample.
        seed: of the sample.
        max_fit_documents: most documents to set the bins by, chosen by a hash of their text.
        max_length, batch_size, device: see LocalModel.
    """

    def __init__(
        self,
        path: str,
        bins: int = 5,
        seed: int = 0,
        max_fit_documents: int = 1000,
        max_length: int = 512,
        batch_size: int = 1,
        device: str = "cpu",
    ):
        BitsPerByte.__init__(self, bins, seed, max_fit_documents)
        ModelLabeller.__init__(self, path, "AutoModelForCausalLM", max_length, batch_size, device)

    def parameters(self) -> dict[str, Any]:
        return ModelLabeller.parameters(self) | BitsPerByte.parameters(self)

    def nats_and_bytes(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        nats = self._local.collect(texts, _negative_log_likelihood, 1)[:, 0]
        return nats, np.array([self._local.bytes_after_first(text) for text in texts])


def _negative_log_likelihood(out: Any, ids: Any, mask: Any) -> Any:
    """Sum over each row's tokens after the first, in nats, [batch]."""
    logits = out.logits[:, :-1].float().log_softmax(dim=-1)
    each = logits.gather(-1, ids[:, 1:, None])[..., 0]
    return -(each * mask[:, 1:]).sum(dim=1)
