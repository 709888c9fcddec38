"""An agent that sees one categorical attribute and holds one weight per label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from mads.agents.agent import AgentBase
from mads.agents.base import AttributeView, ProbeRewards
from mads.agents.columns import label_codes


class LabelAgent(AgentBase):
    """Memory of the paper's agents: S_A(x) = w_{label(x)}. Start weights are those of the selection (token shares under `paper`,
    0 under `mads`) and what is believed of the labels before any reward.

    Args:
        attribute: the column that the agent sees.
        name: its name in records; the attribute's if not given.
        prior: start weights rise by it for each standard deviation between labels (`normal_scores`): for labels in ascending
            order, such as bins of a score, of which later ones are believed to be better. Or numbers that the first labels' start
            weights rise by, in their order; labels behind them, such as a grown pool may have, begin without. The first decisions
            follow it, rewards correct it.
    """

    def __init__(self, attribute: str, name: str | None = None, prior: float | Sequence[float] = 0.0):
        super().__init__(attribute, name)
        each = isinstance(prior, Sequence) and not isinstance(prior, str)
        if not all(finite(value) for value in (prior if each else [prior])):
            raise ValueError(f"prior={prior!r} must be a finite number, or a list of them, for the labels")
        self.prior = [float(value) for value in prior] if each else float(prior)

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raises:
        ValueError: the prior is for more labels than there are.
        """
        if not isinstance(self.prior, float) and len(self.prior) > len(labels):
            raise ValueError(
                f"prior has {len(self.prior)} numbers, the attribute {self.attribute!r} only {len(labels)} labels, "
                f"{', '.join(labels)}: give at most one number for each, in this order"
            )

    def start(self, view: AttributeView) -> None:
        self.check_labels(self.labels)
        self.weights = self.rule.start(self.shares)
        if not isinstance(self.prior, float):
            self.weights = self.weights + np.append(self.prior, np.zeros(len(self.labels) - len(self.prior)))
        elif self.prior:
            self.weights = self.weights + self.prior * normal_scores(self.shares)

    def grow(self, view: AttributeView, known: int) -> None:
        """New labels start as the rule starts them: no prior speaks of what was not there."""
        self.weights[known:] = self.rule.start(self.shares)[known:]

    def score(self, view: AttributeView) -> np.ndarray:
        return self.weights[label_codes(view, self.attribute)]

    def learn(self, probes: ProbeRewards) -> float:
        """By the rule's own step, which judges and moves the labels' weights (Eq. 4, 5 and 7)."""
        self.observe(probes)
        self.weights, reward = self.rule.step(self.weights, self.mix_shares(probes), self.statistics)
        return reward


def finite(value: object) -> bool:
    """Whether it is a number, neither infinite nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def normal_scores(shares: np.ndarray) -> np.ndarray:
    """Mean of a standard normal variable between the quantiles that bound each label, float64 [L].

    (phi(a_j) - phi(a_(j+1))) / p_j with a_j the normal quantile of p_1 + ... + p_(j-1); a label without tokens has a_(j+1).

    Args:
        shares: the labels' shares of the tokens, in their order, float64 [L]
    """
    normal, ends = NormalDist(), np.concatenate([[0.0], np.cumsum(shares)]) / np.sum(shares)
    inner = [0.0 < end < 1.0 for end in ends]
    density = np.array([normal.pdf(normal.inv_cdf(end)) if ok else 0.0 for end, ok in zip(ends, inner)])
    place = [normal.inv_cdf(min(max(end, 1e-12), 1 - 1e-12)) for end in ends[1:]]
    return np.where(shares > 0, (density[:-1] - density[1:]) / np.where(shares > 0, shares / np.sum(shares), 1.0), place)
