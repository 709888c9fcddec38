"""A linear model on hashed n-grams, trained good against web, as DataComp-LM chose its training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mads.data.cutting import batches
from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.base import FittedLabeller
from mads.label.calibration import LABELS, QUANTILES, SCORES, bins_of, knots_of, score_of
from mads.label.sampling import choose, content_ids, hash_of, read_texts
from mads.label.words import hashed_ngrams, split_words
from mads.noise import hash64

_FEWEST = 20
_LONGEST = 20_000  # characters of a document that the classifier learns from
_HELDOUT = 10  # one document in so many is kept from training, for the accuracy


def check_columns(columns: int) -> None:
    """Raises:
    DataError: if `columns` of hashed features is no power of two.
    """
    if columns < 2 or columns & (columns - 1):
        raise DataError(f"columns={columns} of a classifier's hashed features must be a power of two")


def train_linear(features, target: np.ndarray, regularization: float, seed: int) -> tuple[np.ndarray, float]:
    """(coefficients float64 [columns], intercept) of a logistic regression whose two classes weigh the same.

    features: sparse [n, columns]; target: bool [n]; regularization: C, smaller is more.
    """
    model = LogisticRegression(C=regularization, class_weight="balanced", solver="lbfgs", max_iter=200, random_state=seed)
    model.fit(features, target)
    return model.coef_[0], float(model.intercept_[0])


class GoodAgainstWeb(FittedLabeller):
    """Score in [0, 5] of how much a document reads like text that was given as good, in five bins.

    The recipe of DataComp-LM (Li et al. 2024, arXiv 2406.11794, section 4.4) with a logistic regression over hashed 1- and
    2-grams in the place of fastText: positives are good text, negatives are the rest of the pool. The log-odds have no scale of
    their own, so their quantiles on the fit sample are put on the scores as in mads.label.quality. One document in ten is kept
    from training; provenance has accuracy and area under the ROC curve on these.

    Args:
        good_paths: files, folders or globs of good text, in the formats of data=files.
        good_domains: domains of the pool whose documents are good; at least one of the two must be given.
        text_field: of the records in good_paths.
        seed: of the samples.
        max_fit_documents: most documents of each of the two classes, chosen by a hash of their text.
        columns: of the hashed features, a power of two.
        regularization: C of the logistic regression.
    """

    name = "good"

    def __init__(
        self,
        good_paths: Sequence[str] = (),
        good_domains: Sequence[str] = (),
        text_field: str = "text",
        seed: int = 0,
        max_fit_documents: int = 5000,
        columns: int = 1 << 18,
        regularization: float = 10.0,
    ):
        check_columns(columns)
        self.reads = ("text", "domain") if good_domains else ("text",)
        if not good_paths and not good_domains:
            raise DataError("GoodAgainstWeb needs good text: good_paths=[...] or good_domains=[...]")
        self.good_paths, self.good_domains, self.text_field = list(good_paths), list(good_domains), text_field
        self.seed, self.max_fit_documents, self.columns, self.regularization = seed, max_fit_documents, columns, regularization

    def parameters(self) -> dict[str, Any]:
        return {
            "good_domains": self.good_domains,
            "text_field": self.text_field,
            "seed": self.seed,
            "max_fit_documents": self.max_fit_documents,
            "columns": self.columns,
            "regularization": self.regularization,
        }

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: with fewer than 20 different documents of a class, or good_paths that cannot be read.
        """
        given = read_texts(self.good_paths, self.text_field) if self.good_paths else []
        good = {d.text: d for d in given} | {d.text: d for d in documents if d.domain in self.good_domains}
        web = {d.text: d for d in documents if d.domain not in self.good_domains and d.text not in good}
        for what, found in (("good", good), ("other", web)):
            if len(found) < _FEWEST:
                raise DataError(
                    f"GoodAgainstWeb needs at least {_FEWEST} different documents of each class, there are {len(found)} "
                    f"{what} ones; the sample of the pool has the domains {sorted({d.domain for d in documents})[:20]}"
                )
        good, web = (choose(list(d.values()), self.max_fit_documents, self.seed, "good-against-web") for d in (good, web))
        both, target = [*good, *web], np.arange(len(good) + len(web)) < len(good)
        features = self._features([d.text[:_LONGEST] for d in both])
        heldout = hash64(self.seed, "good-heldout", 0, content_ids(both)) % np.uint64(_HELDOUT) == 0
        self._coefficients, self._intercept = train_linear(features[~heldout], target[~heldout], self.regularization, self.seed)
        self._learned = {
            "scikit_learn": sklearn.__version__,
            "good_documents": len(good),
            "good_hash": hash_of(good),
            "web_documents": len(web),
            **_accuracy(self._log_odds(features[heldout]), target[heldout]),
        }
        sample = choose(list({d.text: d for d in documents}.values()), self.max_fit_documents, self.seed, "good-scale")
        self._knots = knots_of(self._raw([d.text for d in sample]))
        self._fitted = True

    def _features(self, texts: Sequence[str]):
        """Hashed features of the texts, sparse [n, columns]."""
        parts = [hashed_ngrams(split_words(texts[part]), self.columns) for part in batches(texts)]
        return scipy.sparse.vstack(parts, format="csr")

    def _log_odds(self, features) -> np.ndarray:
        return features @ self._coefficients + self._intercept

    def _raw(self, texts: Sequence[str]) -> np.ndarray:
        """Log-odds of the texts, float64 [n]; never more than a batch of features is held."""
        parts = [self._log_odds(hashed_ngrams(split_words(texts[part]), self.columns)) for part in batches(texts)]
        return np.concatenate([np.zeros(0), *parts])

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
        """(bin uint16 [n], score float32 [n] in [0, 5]).

        Raises:
            RuntimeError: before `fit`.
        """
        self._require_fit()
        score = score_of(self._raw([d.text for d in documents]), self._knots)
        return bins_of(score), score

    def _facts(self) -> dict[str, Any]:
        return self._learned

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"coefficients": self._coefficients, "intercept": np.array(self._intercept), "knots": self._knots}

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._learned, self._coefficients, self._knots = facts, arrays["coefficients"], arrays["knots"]
        self._intercept = float(arrays["intercept"])

    def schema(self) -> AttributeSchema:
        self._require_fit()
        calibration = {"quantiles": list(QUANTILES), "scores": list(SCORES)}
        return AttributeSchema(
            self.name, LABELS, continuous=True, provenance=self.provenance(calibration=calibration, **self._learned)
        )


def _accuracy(log_odds: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """Accuracy, with both classes weighing the same, and area under the curve on documents that were not trained on."""
    if target.all() or not target.any():
        return {"heldout_documents": len(target), "heldout_accuracy": None, "heldout_auc": None}
    right = (log_odds > 0) == target
    balanced = (right[target].mean() + right[~target].mean()) / 2
    return {
        "heldout_documents": len(target),
        "heldout_accuracy": round(float(balanced), 4),
        "heldout_auc": round(float(roc_auc_score(target, log_odds)), 4),
    }
