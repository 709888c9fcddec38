"""TF-IDF over the words that tell topics apart, and names for clusters of documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from mads.data.cutting import batches
from mads.label.words import WordBatch, count_matrix, normalize_rows, split_words


class Vocabulary:
    """Words with their inverse document frequencies.

    terms: word -> column; idf: float64 [columns]
    """

    def __init__(self, terms: Sequence[str], idf: np.ndarray):
        self.terms = {term: i for i, term in enumerate(terms)}
        self.idf = idf

    @classmethod
    def learn(cls, parts: Sequence[WordBatch], most_terms: int, max_document_share: float) -> Vocabulary:
        """The words of the most documents (ties by spelling), without those in nearly all or nearly none."""
        documents = sum(part.texts for part in parts)
        counts: dict[str, int] = {}
        for part in parts:
            terms = sorted(set(filter(_is_topical, part.terms)))
            found = _counted(part, {term: i for i, term in enumerate(terms)})
            for term, count in zip(terms, np.bincount(found.indices, minlength=len(terms)).tolist()):
                counts[term] = counts.get(term, 0) + count
        fewest, most = max(2, documents // 2000), max(max_document_share * documents, 2)
        usable = sorted((-count, term) for term, count in counts.items() if fewest <= count <= most)[:most_terms]
        idf = 1.0 + np.log((1 + documents) / (1 + np.array([-count for count, _ in usable], dtype=np.float64)))
        return cls([term for _, term in usable], idf)

    def __len__(self) -> int:
        return len(self.terms)

    def tfidf(self, batch: WordBatch) -> scipy.sparse.csr_matrix:
        """(1 + log count) * idf, rows of unit length, float64 [texts, columns]; a text without a known word is an empty row."""
        matrix = _counted(batch, self.terms)
        matrix.data = (1.0 + np.log(matrix.data)) * self.idf[matrix.indices]
        return normalize_rows(matrix)

    def name_clusters(self, matrix: scipy.sparse.csr_matrix, member: np.ndarray, fallback: np.ndarray) -> tuple[str, ...]:
        """Three words for each cluster by how much more weight they have in it than overall; more, and at last a number, where
        two clusters would share a name.

        matrix: tfidf of the documents; member: int [n], cluster of each; fallback: [columns, clusters], the weight of each word
        for an empty cluster
        """
        terms = list(self.terms)
        overall = np.asarray(matrix.mean(axis=0))[0]
        names: list[str] = []
        for cluster in range(fallback.shape[1]):
            inside = member == cluster
            lift = np.asarray(matrix[inside].mean(axis=0))[0] - overall if inside.any() else fallback[:, cluster]
            order = np.argsort(-lift, kind="stable")
            length = 3
            while (name := "-".join(terms[i] for i in order[:length])) in names and length < len(terms):
                length += 1
            names.append(f"{name}-{cluster}" if name in names else name)
        return tuple(names)


def name_clusters(texts: Sequence[str], member: np.ndarray, clusters: int) -> tuple[str, ...]:
    """Names for clusters that were not found by words, as Vocabulary.name_clusters gives them."""
    parts = [split_words(texts[part]) for part in batches(texts)]
    vocabulary = Vocabulary.learn(parts, 20_000, 0.3)
    if not len(vocabulary):
        return tuple(f"topic-{i}" for i in range(clusters))
    matrix = scipy.sparse.vstack([vocabulary.tfidf(part) for part in parts], format="csr")
    return vocabulary.name_clusters(matrix, member, np.zeros((len(vocabulary), clusters)))


def _counted(batch: WordBatch, column: dict[str, int]) -> scipy.sparse.csr_matrix:
    of_word = np.fromiter((column.get(term, -1) for term in batch.terms), np.int64, len(batch.vocabulary))[batch.word]
    known = of_word >= 0
    return count_matrix(batch.document[known], of_word[known], (batch.texts, max(len(column), 1)))


def _is_topical(term: str) -> bool:
    return len(term) > 2 and term.isalpha() and term not in ENGLISH_STOP_WORDS
