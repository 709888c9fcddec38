"""An agent over the joint cells of several attributes: additive main effects, and interactions shrunk toward none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mads.agents.base import AttributeView, ProbeRewards
from mads.agents.cells import CellAgent

_STEPS = 40  # of expectation and maximisation
_LEAST = 1e-6  # a variance is held above this part of the rewards' mean square


@dataclass(frozen=True)
class CellMeans:
    """Rewards by joint cell, of the cells that had probes. cells: int64 [n]; mean, size (effective number of probes): float64 [n]

    noise: variance of a single probe's reward inside its cell
    scale: mean square of the rewards
    """

    cells: np.ndarray
    mean: np.ndarray
    size: np.ndarray
    noise: float
    scale: float


class JointCellAgent(CellAgent):
    """S(x) = effects of the labels of x + interaction of its cell, the posterior mean of

        R_c = mu + sum_a u_{a, label_a(c)} + g_c + noise,   u_{a,l} ~ N(0, tau_a^2),  g_c ~ N(0, tau_g^2)

    with the variances of greatest likelihood (EM). A cell without probes has its labels' effects; one with few has little more.

    Args:
        attributes: two or more, for example quality, domain, topic.
        decay: what a round's probes count for in the next one; in [0, 1).
    """

    memory = ("counted", "squared", "rewarded", "spread")

    def __init__(self, attributes: Sequence[str], name: str | None = None, decay: float = 0.5):
        super().__init__(attributes, name)
        if len(self.attributes) < 2:
            raise ValueError(f"attributes={list(self.attributes)}: joint cells need two or more; for one there is LabelAgent")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must lie in [0, 1): what a round's probes count for in the next one")
        self.decay = float(decay)

    def start(self, view: AttributeView) -> None:
        super().start(view)
        for key in self.memory:
            setattr(self, key, np.zeros(len(self.cell_shares)))

    def update(self, probes: ProbeRewards) -> None:
        a, r = probes.importance * probes.targets, probes.rewards
        cells, count = self.cells(probes.view), len(self.cell_shares)
        for key, old, values in (
            ("counted", self.decay, a),
            ("squared", self.decay**2, a * a),  # Kish's size of weights decay^k a
            ("rewarded", self.decay, a * r),
            ("spread", self.decay, a * r * r),
        ):
            setattr(self, key, old * getattr(self, key) + np.bincount(cells, weights=values, minlength=count))
        self.restored()

    def restored(self) -> None:
        means = self._means()
        if means is None:
            self.table = np.zeros(len(self.cell_shares))
            return
        codes = np.stack(np.unravel_index(means.cells, self.sizes))
        effects, interaction = fit_additive(means, codes, self.sizes)
        everywhere = np.stack(np.unravel_index(np.arange(len(self.cell_shares)), self.sizes))
        self.table = _additive(effects, everywhere, self.sizes)
        self.table[means.cells] += interaction

    def _means(self) -> CellMeans | None:
        """None before the first rewards, and where they were all 0."""
        cells = np.flatnonzero(self.counted > 0)
        n, q, t, s = (getattr(self, key)[cells] for key in self.memory)
        scale = s.sum() / n.sum() if len(cells) else 0.0
        if scale <= 0:
            return None
        mean, size = t / n, n * n / q
        freedom = np.maximum(size - 1, 0)
        within = size * np.maximum(s / n - mean * mean, 0)
        noise = within.sum() / freedom.sum() if freedom.sum() > 1e-9 else scale  # one probe a cell: all may be noise
        return CellMeans(cells, mean, size, max(noise, _LEAST * scale), scale)


def fit_additive(means: CellMeans, codes: np.ndarray, sizes: Sequence[int], steps: int = _STEPS) -> tuple[np.ndarray, np.ndarray]:
    """(effects: mu, then the labels' effects attribute after attribute, float64 [1 + sum sizes]; interaction of each of the n
    cells, float64 [n]).

    codes: int64 [attributes, n], the cells' labels. Interactions are integrated out: the ridge regression of the effects weights
    a cell with 1 / (tau_g^2 + noise / size). All sums are in a fixed order and nothing goes to a threaded library, so that
    ranks agree bit for bit.
    """
    tau, tau_g = _variances(means, codes, sizes, steps)
    effects, interaction, _, _ = _posterior(means, codes, sizes, tau, tau_g)
    return effects, interaction


def _variances(means: CellMeans, codes: np.ndarray, sizes: Sequence[int], steps: int) -> tuple[np.ndarray, float]:
    """tau_a^2 of each attribute, tau_g^2."""
    least, start = _LEAST * means.scale, means.scale / (len(sizes) + 1)
    tau, tau_g = np.full(len(sizes), start), start
    first = 1 + np.concatenate([[0], np.cumsum(sizes)])
    for _ in range(steps):
        effects, interaction, inverse, left = _posterior(means, codes, sizes, tau, tau_g)
        square = effects**2 + np.diagonal(inverse)
        tau = np.array([max(least, square[first[a] : first[a + 1]].mean()) for a in range(len(sizes))])
        tau_g = max(least, float((interaction**2 + left).mean()))
    return tau, tau_g


def _posterior(
    means: CellMeans, codes: np.ndarray, sizes: Sequence[int], tau: np.ndarray, tau_g: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(effects, interaction of each cell, covariance of the effects, variance of each interaction), given the variances."""
    columns = _columns(codes, sizes)  # [1 + attributes, n]
    count, noise = 1 + int(np.sum(sizes)), means.noise / means.size
    weight = 1 / (tau_g + noise)
    normal = np.zeros(count * count)
    for left in columns:
        for right in columns:
            normal += np.bincount(left * count + right, weights=weight, minlength=count * count)
    normal = normal.reshape(count, count)
    normal[np.arange(1, count), np.arange(1, count)] += np.repeat(1 / tau, sizes)
    right = sum(np.bincount(column, weights=weight * means.mean, minlength=count) for column in columns)
    inverse = _inverse(normal)
    effects = (inverse * right).sum(1)
    kept = tau_g * weight
    interaction = kept * (means.mean - _additive(effects, codes, sizes))
    doubt = sum(inverse[left, right] for left in columns for right in columns)  # variance of the effects' sum
    return effects, interaction, inverse, tau_g * (1 - kept) + kept**2 * doubt


def _columns(codes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Places of each cell's effects, int64 [1 + attributes, n]; place 0 is mu."""
    first = 1 + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.concatenate([np.zeros((1, codes.shape[1]), dtype=np.int64), codes + first[:, None]])


def _additive(effects: np.ndarray, codes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    return effects[_columns(codes, sizes)].sum(0)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric positive definite matrix, by Gauss-Jordan elimination without pivots, which such a matrix needs none."""
    left, right = matrix.copy(), np.eye(len(matrix))
    for k in range(len(matrix)):
        pivot = left[k, k]
        row, other = left[k] / pivot, right[k] / pivot
        factor = left[:, k].copy()
        factor[k] = 0.0
        left -= factor[:, None] * row
        right -= factor[:, None] * other
        left[k], right[k] = row, other
    return right
