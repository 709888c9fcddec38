"""Topic: clusters of documents that use the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import sklearn
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize

from mads.data.cutting import batches
from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.base import FittedLabeller, pack_json, unpack_json
from mads.label.sampling import choose
from mads.label.vocabulary import Vocabulary
from mads.label.words import split_words


class TopicLabeller(FittedLabeller):
    """k-means over latent semantic analysis: TF-IDF of the words, projected by a truncated SVD, rows of unit length, clustered by
    MiniBatchKMeans; a document belongs to the centre with the largest cosine. A document with no known word belongs to the
    largest cluster. Labels are named by the words that set a cluster apart ("space-nasa-orbit").

    Args:
        topics: number of clusters.
        seed: of the sample, the SVD and the clustering.
        max_fit_documents: most documents to learn from, chosen by a hash of their text.
        terms: most words of the vocabulary, by the number of documents that have them.
        dimensions: of the projection.
        max_document_share: a word in a larger share of documents tells no topic.
    """

    name = "topic"

    def __init__(
        self,
        topics: int = 13,
        seed: int = 0,
        max_fit_documents: int = 6000,
        terms: int = 20_000,
        dimensions: int = 100,
        max_document_share: float = 0.3,
    ):
        if topics < 2:
            raise DataError(f"topics={topics} must be at least 2")
        self.topics, self.seed, self.max_fit_documents = topics, seed, max_fit_documents
        self.terms, self.dimensions, self.max_document_share = terms, dimensions, max_document_share
        self._vocabulary = Vocabulary([], np.zeros(0))
        self._weights: np.ndarray | None = None  # [columns, topics]: TF-IDF row @ weights ranks the topics
        self._largest = 0
        self._names: tuple[str, ...] = ()
        self._learned: dict[str, Any] = {}

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: with too few documents or too few shared words for so many topics.
        """
        chosen = choose(list({d.text: d for d in documents}.values()), self.max_fit_documents, self.seed, "topic-fit")
        texts = [d.text for d in chosen]
        parts = [split_words(texts[part]) for part in batches(texts)]
        self._vocabulary = Vocabulary.learn(parts, self.terms, self.max_document_share)
        if min(len(texts), len(self._vocabulary)) <= 2 * self.topics:
            raise DataError(
                f"{len(texts)} different documents with {len(self._vocabulary)} words in common are too few for {self.topics} "
                "topics; give more text or fewer topics"
            )
        matrix = scipy.sparse.vstack([self._vocabulary.tfidf(part) for part in parts], format="csr")
        svd = TruncatedSVD(min(self.dimensions, min(matrix.shape) - 1), random_state=self.seed)
        projected = normalize(svd.fit_transform(matrix))
        kmeans = MiniBatchKMeans(self.topics, random_state=self.seed, n_init=5, batch_size=2048).fit(projected)
        self._weights = np.ascontiguousarray(svd.components_.T @ normalize(kmeans.cluster_centers_).T)
        member = self._nearest(matrix)
        sizes = np.bincount(member, minlength=self.topics)
        self._largest = int(sizes.argmax())
        self._names = self._vocabulary.name_clusters(matrix, member, self._weights)
        self._learned = {
            "scikit_learn": sklearn.__version__,
            "fit_documents": len(texts),
            "terms_used": len(self._vocabulary),
            "fit_sizes": sizes.tolist(),
        }
        self._fitted = True

    def _nearest(self, matrix: scipy.sparse.csr_matrix) -> np.ndarray:
        """The projection is linear and its length the same for all topics, so one product ranks them."""
        nearest = np.asarray(matrix @ self._weights).argmax(axis=1)
        nearest[np.diff(matrix.indptr) == 0] = self._largest
        return nearest

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, None]:
        """(topic uint16 [n], None).

        Raises:
            RuntimeError: before `fit`.
        """
        self._require_fit()
        texts = [d.text for d in documents]
        codes = [self._nearest(self._vocabulary.tfidf(split_words(texts[part]))) for part in batches(texts)]
        return np.concatenate(codes or [np.zeros(0)]).astype(np.uint16), None

    def parameters(self) -> dict[str, Any]:
        return {
            "topics": self.topics,
            "seed": self.seed,
            "max_fit_documents": self.max_fit_documents,
            "terms": self.terms,
            "dimensions": self.dimensions,
            "max_document_share": self.max_document_share,
        }

    def _facts(self) -> dict[str, Any]:
        return {"names": self._names, "learned": self._learned}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "terms": pack_json(list(self._vocabulary.terms)),
            "idf": self._vocabulary.idf,
            "weights": self._weights,
        }

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._names, self._learned = tuple(facts["names"]), facts["learned"]
        self._largest = int(np.argmax(self._learned["fit_sizes"]))
        self._vocabulary = Vocabulary(unpack_json(arrays["terms"]), arrays["idf"])
        self._weights = arrays["weights"]

    def schema(self) -> AttributeSchema:
        self._require_fit()
        return AttributeSchema(self.name, self._names, provenance=self.provenance(**self._learned))
