"""Quality: rules of Gopher and C4 beside a linear classifier, as a score from 0 to 5 and five bins of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import sklearn

from mads.data.cutting import batches
from mads.data.documents import Document
from mads.data.schema import AttributeSchema, DataError
from mads.label.base import FittedLabeller
from mads.label.calibration import LABELS, QUANTILES, SCORES, bins_of, knots_of, score_of
from mads.label.corruption import corrupt
from mads.label.linear import check_columns, train_linear
from mads.label.rules import RULES, rule_score
from mads.label.sampling import choose
from mads.label.statistics import text_statistics
from mads.label.words import hashed_ngrams, split_words

_FEWEST = 20
_LONGEST = 20_000  # characters of a document that the classifier learns from


class QualityLabeller(FittedLabeller):
    """Score in [0, 5] of how much a document reads like intact natural text, in the bins of the FineWeb-Edu score.

    Two raw measures: the weighted share of rules passed (mads.label.rules), and the log-odds of a logistic regression over
    hashed 1- and 2-grams that was trained to tell documents from worsened copies of themselves (shuffled words, shuffled letters,
    one line repeated) and from documents that fail many rules. Each is standardised on the fit sample and they are added. The sum
    has no scale of its own, so a monotone, piecewise linear map puts its quantiles 0, 10, 30, 70, 90 and 100% on the scores 0 to
    5: on text like the fit sample the bins hold about 10, 20, 40, 20 and 10%, and none is empty. Scores therefore compare
    documents of one pool, not of two.

    Args:
        seed: of the sample and of the noise in the worsened copies.
        max_fit_documents: most documents to learn from, chosen by a hash of their text.
        columns: of the hashed features, a power of two.
        regularization: C of the logistic regression.
        fail_below: a document that passes a smaller share of the rules is an example of bad text, not of good.
    """

    name = "quality"

    def __init__(
        self,
        seed: int = 0,
        max_fit_documents: int = 2000,
        columns: int = 1 << 18,
        regularization: float = 10.0,
        fail_below: float = 0.7,
    ):
        check_columns(columns)
        self.seed, self.max_fit_documents, self.columns = seed, max_fit_documents, columns
        self.regularization, self.fail_below = regularization, fail_below
        self._coefficients: np.ndarray | None = None  # [columns]
        self._intercept = 0.0
        self._center = self._scale = np.zeros(2)  # of (rule score, log-odds) over the fit sample
        self._knots = np.zeros(len(QUANTILES))  # raw sums at QUANTILES
        self._learned: dict[str, Any] = {}

    def fit(self, documents: Sequence[Document]) -> None:
        """Raises:
        DataError: with fewer than 20 different documents that pass most rules.
        """
        chosen = choose(list({d.text: d for d in documents}.values()), self.max_fit_documents, self.seed, "quality-fit")
        rules, features = self._measure([d.text[:_LONGEST] for d in chosen])
        passed = rules >= self.fail_below
        good = [Document(d.text[:_LONGEST], d.domain, d.origin, d.line) for d, ok in zip(chosen, passed) if ok]
        if len(good) < _FEWEST:
            raise DataError(
                f"the quality classifier needs at least {_FEWEST} different documents that pass most rules, got {len(good)} of "
                f"{len(documents)}; give more text, or leave the quality attribute out"
            )
        worsened, worsened_features = self._measure(corrupt(good, self.seed))
        self._train(features, passed, worsened_features)
        measures = np.stack([rules, self._log_odds(features)])
        self._center, self._scale = measures.mean(axis=1), np.maximum(measures.std(axis=1), 1e-6)
        self._knots = knots_of(self._raw(measures))
        self._learned = {
            "scikit_learn": sklearn.__version__,
            "fit_documents": len(chosen),
            "failing": int((~passed).sum()),
            "knots": [float(k) for k in self._knots],
            "rule_score_natural": float(rules.mean()),
            "rule_score_worsened": float(worsened.mean()),
        }
        self._fitted = True

    def _train(self, features, passed: np.ndarray, worsened_features) -> None:
        both = scipy.sparse.vstack([features, worsened_features], format="csr")
        target = np.concatenate([passed, np.zeros(worsened_features.shape[0], dtype=bool)])
        self._coefficients, self._intercept = train_linear(both, target, self.regularization, self.seed)

    def _measure(self, texts: Sequence[str]):
        """(rule score [n], hashed features [n, columns]) of the texts."""
        rules, features = [], []
        for part in batches(texts):
            batch = split_words(texts[part])
            rules.append(rule_score(text_statistics(texts[part], batch)))
            features.append(hashed_ngrams(batch, self.columns))
        return np.concatenate(rules), scipy.sparse.vstack(features, format="csr")

    def _log_odds(self, features) -> np.ndarray:
        return features @ self._coefficients + self._intercept

    def _raw(self, measures: np.ndarray) -> np.ndarray:
        return ((measures - self._center[:, None]) / self._scale[:, None]).sum(axis=0)

    def label(self, documents: Sequence[Document]) -> tuple[np.ndarray, np.ndarray]:
        """(bin uint16 [n], score float32 [n] in [0, 5]); a score of exactly 5 is in the last bin.

        Raises:
            RuntimeError: before `fit`.
        """
        self._require_fit()
        if not documents:
            return np.zeros(0, dtype=np.uint16), np.zeros(0, dtype=np.float32)
        texts = [d.text for d in documents]
        scores = []
        for part in batches(texts):
            rules, features = self._measure(texts[part])
            scores.append(score_of(self._raw(np.stack([rules, self._log_odds(features)])), self._knots))
        score = np.concatenate(scores)
        return bins_of(score), score

    def parameters(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "max_fit_documents": self.max_fit_documents,
            "columns": self.columns,
            "regularization": self.regularization,
            "fail_below": self.fail_below,
        }

    def _facts(self) -> dict[str, Any]:
        return self._learned

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "coefficients": self._coefficients,
            "intercept": np.array(self._intercept),
            "center": self._center,
            "scale": self._scale,
            "knots": self._knots,
        }

    def _restore(self, facts: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self._learned, self._coefficients = facts, arrays["coefficients"]
        self._intercept = float(arrays["intercept"])
        self._center, self._scale, self._knots = arrays["center"], arrays["scale"], arrays["knots"]

    def schema(self) -> AttributeSchema:
        self._require_fit()
        rules = {rule.__name__: weight for rule, weight in RULES}
        calibration = {"quantiles": list(QUANTILES), "scores": list(SCORES)}
        provenance = self.provenance(rules=rules, calibration=calibration, **self._learned)
        return AttributeSchema(self.name, LABELS, continuous=True, provenance=provenance)
