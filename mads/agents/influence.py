"""An agent that learns a small model of rewards from a sample's attributes: a linear influence model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mads.agents.agent import AgentBase
from mads.agents.base import AttributeView, ProbeRewards
from mads.agents.columns import label_codes, pieces

RIDGES = (1.0, 10.0, 100.0, 1000.0, 10000.0)  # penalties that are tried, in probes


class InfluenceAgent(AgentBase):
    """S(x) = phi(x) . w, ridge regression of the rewards of all rounds so far on features of a sample:

        phi(x) = 1, one-hot labels of each attribute, each value standardised (0 where it is missing) and whether it is missing,
                 log length standardised
        w      = argmin sum_x a (r - phi . w)^2 + lambda |w without the first|^2

    A round's weights a = importance x targets have mean 1; one that is k rounds old counts decay^k. lambda is the one of RIDGES
    with the least leave-one-out error over the last round's probes, each left out of the whole fit in closed form.

    The idea is MATES' (Yu et al., arXiv 2406.06046), which trains a BERT-sized model to foretell a sample's influence from its
    text and scores the pool by it; this one is linear and sees labelled attributes only.

    Args:
        attributes: categorical columns; probes are drawn by the first one's labels.
        values: columns with values.
        decay: what a round's probes count for in the next one, in [0, 1].

    After `bind`: centres, scales: float64 [values + 1], means and standard deviations by tokens, length last, of the pool that
    the run began with, so that what was learned keeps its meaning when it grows.
    """

    memory = ("centres", "scales", "gram", "moment", "coefficients", "ridge")

    def __init__(self, attributes: Sequence[str], name: str | None = None, values: Sequence[str] = (), decay: float = 0.7):
        if isinstance(attributes, str) or not len(attributes):
            raise ValueError(f"attributes={attributes!r} must be a list of one or more attributes")
        super().__init__(attributes[0], name or "influence")
        if isinstance(values, str):
            raise ValueError(f"values={values!r} must be a list of columns")
        if not 0 <= decay <= 1:
            raise ValueError(f"decay={decay} must lie in [0, 1]: what a round's probes count for in the next one")
        self.attributes, self.values, self.decay = tuple(attributes), tuple(values), float(decay)

    # ------------------------------------------------------------ features

    def start(self, view: AttributeView) -> None:
        """gram: sum of decayed a phi phi^T, float64 [p, p]; moment: of a phi r, [p]; coefficients: w, [p]; ridge: lambda."""
        self.sizes = [len(view.labels(attribute)) for attribute in self.attributes]
        total, first, second = np.zeros(len(self.values) + 1), np.zeros(len(self.values) + 1), np.zeros(len(self.values) + 1)
        for part in pieces(view):
            columns, known = self._numbers(part)
            weight = known * np.asarray(part.lengths, np.float64)
            total, first, second = (sums + (weight * columns**power).sum(1) for power, sums in enumerate((total, first, second)))
        if (total == 0).any():
            empty = [name for name, tokens in zip(self.values, total) if tokens == 0]
            raise ValueError(f"agent {self.name!r}: {empty} have no finite value in the pool; leave them out of its values")
        self.centres = first / total
        spread = np.sqrt(np.maximum(second / total - self.centres**2, 0.0))
        self.scales = np.where(spread > 1e-9 * np.maximum(1.0, np.abs(self.centres)), spread, 1.0)
        size = 1 + sum(self.sizes) + 2 * len(self.values) + 1
        self.gram, self.moment, self.coefficients = np.zeros((size, size)), np.zeros(size), np.zeros(size)
        self.ridge = RIDGES[-1]

    def _numbers(self, view: AttributeView) -> tuple[np.ndarray, np.ndarray]:
        """(values and log length, 0 where missing; which are known), float64 and bool [values + 1, n]."""
        columns = [np.asarray(view.values(name), np.float64) for name in self.values]
        columns = np.stack([*columns, np.log(np.asarray(view.lengths, np.float64))])
        known = np.isfinite(columns)
        return np.where(known, columns, 0.0), known

    def features(self, view: AttributeView) -> np.ndarray:
        """phi, float64 [n, p]."""
        n, columns = len(view), [np.ones((len(view), 1))]
        for attribute, size in zip(self.attributes, self.sizes):
            one_hot = np.zeros((n, size))
            one_hot[np.arange(n), label_codes(view, attribute)] = 1.0
            columns.append(one_hot)
        numbers, known = self._numbers(view)
        standard = np.where(known, (numbers - self.centres[:, None]) / self.scales[:, None], 0.0)
        return np.concatenate([*columns, standard[:-1].T, ~known[:-1].T, standard[-1:].T], axis=1)

    def score(self, view: AttributeView) -> np.ndarray:
        """phi . w, summed feature by feature, so that no cut of the pool changes a bit of it."""
        total, at = np.full(len(view), self.coefficients[0]), 1
        for attribute, size in zip(self.attributes, self.sizes):
            total += self.coefficients[at : at + size][label_codes(view, attribute)]
            at += size
        numbers, known = self._numbers(view)
        standard = np.where(known, (numbers - self.centres[:, None]) / self.scales[:, None], 0.0)
        for column in (*standard[:-1], *~known[:-1], standard[-1]):
            total += self.coefficients[at] * column
            at += 1
        return total

    # ------------------------------------------------------------ learning

    def update(self, probes: ProbeRewards) -> None:
        phi, a = self.features(probes.view), probes.importance * probes.targets
        a = a / a.mean()
        weighted = phi * a[:, None]
        self.gram = self.decay * self.gram + weighted.T @ phi
        self.moment = self.decay * self.moment + weighted.T @ probes.rewards
        errors, fits = [], []
        for ridge in RIDGES:
            fit, error = leave_one_out(self.gram, self.moment, phi, a, probes.rewards, ridge)
            errors.append(error)
            fits.append(fit)
        best = int(np.argmin(errors))
        self.ridge, self.coefficients = RIDGES[best], fits[best]

    def grow(self, view: AttributeView, known: int) -> None:
        """New labels get features without evidence, whose coefficients are 0."""
        before, at = self.sizes, 1
        self.sizes = [len(view.labels(attribute)) for attribute in self.attributes]
        for size, grown in zip(before, self.sizes):
            places = [at + size] * (grown - size)
            self.gram = np.insert(np.insert(self.gram, places, 0.0, axis=0), places, 0.0, axis=1)
            self.moment, self.coefficients = (np.insert(x, places, 0.0) for x in (self.moment, self.coefficients))
            at += grown

    def load_state(self, state: dict) -> None:
        super().load_state(state)
        size = 1 + sum(self.sizes) + 2 * len(self.values) + 1
        if not self.gram.shape == (size, size) == (len(self.moment), len(self.coefficients)):
            raise ValueError(
                f"the checkpoint's agent {self.name!r} has {len(self.moment)} features, this one has {size}; resume with the "
                "agents and the data of the checkpoint"
            )


def leave_one_out(
    gram: np.ndarray, moment: np.ndarray, phi: np.ndarray, a: np.ndarray, rewards: np.ndarray, ridge: float
) -> tuple[np.ndarray, float]:
    """(w, error) of the ridge fit with these sums, with error = sum_i a_i (e_i / (1 - a_i h_i))^2, h_i = phi_i^T (gram + D)^-1
    phi_i and D the penalty.

    e_i / (1 - a_i h_i) is the error at probe i of the fit without it (Allen's PRESS), exact though the sums hold older probes.

    Args:
        gram, moment: float64 [p, p] and [p], which include these n probes; phi: [n, p]; a, rewards: [n].
    """
    penalty = np.full(len(moment), ridge)
    penalty[0] = 0.0
    inverse = np.linalg.inv(gram + np.diag(penalty))
    fit = inverse @ moment
    leverage = a * np.einsum("ip,pq,iq->i", phi, inverse, phi)
    left = (rewards - phi @ fit) / np.maximum(1 - leverage, 1e-9)
    return fit, float((a * left**2).sum())
