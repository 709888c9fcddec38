"""Outcomes of groups of samples, regressed on what the groups are made of: random effects with a variance for each agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_FAR = 3.0  # robust standard deviations from the median
_STEPS = 60  # of expectation and maximisation
_LEAST = 1e-6  # a variance is held above this part of the outcomes' variance


@dataclass(frozen=True)
class Outcomes:
    """effects: agent -> float64 [labels], posterior means; errors: their posterior standard deviations
    slope: c, of the given means
    explained: part of the outcomes' variance that effects and means explain together, 0 where outcomes are all equal
    scale: standard deviation of the outcomes, noise included, 0 where they are all equal
    """

    effects: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    slope: float
    explained: float
    scale: float


def winsorised(outcomes: np.ndarray) -> np.ndarray:
    """The outcomes, float64 [n], none farther from their median than three robust standard deviations (1.4826 times the median
    distance from it): a label that spoils the model is then the worst by far, and differences between the others still count."""
    median = np.median(outcomes)
    far = _FAR * 1.4826 * np.median(np.abs(outcomes - median))
    return np.clip(outcomes, median - far, median + far) if far > 0 else outcomes.copy()


def fit_outcomes(
    outcomes: np.ndarray, shares: Mapping[str, np.ndarray], sizes: Mapping[str, int], means: np.ndarray | None = None
) -> Outcomes:
    """y = mu + c m + sum_A X_A e_A + noise with e_A ~ N(0, tau_A^2 I), noise ~ N(0, sigma^2): posterior means at the variances of
    greatest likelihood, found by EM.

    c >= 0 is fitted first, by least squares of y on m, both centred, against a prior variance of y's size: it is small when the
    means say nothing about the outcomes.

    Args:
        outcomes: y, float64 [n]
        shares: agent -> X_A, float64 [n, labels], rows that sum to 1
        means: m, float64 [n]; None: c is 0.
    """
    y = outcomes - outcomes.mean()
    total = float(y @ y)
    effects = {agent: np.zeros(sizes[agent]) for agent in shares}
    if len(y) < 3 or np.ptp(outcomes) <= 1e-12 * np.abs(outcomes).max():
        return Outcomes(effects, {agent: np.zeros(sizes[agent]) for agent in shares}, 0.0, 0.0, 0.0)
    slope = 0.0
    if means is not None and np.ptp(means) > 0:
        m = means - means.mean()
        slope = max(0.0, float(m @ y) / float(m @ m))
        y = y - slope * m
    agents = list(shares)
    # Columns centred over the groups: mu takes what is common.
    design = np.concatenate([shares[a] - shares[a].mean(0) for a in agents], axis=1)
    owner = np.repeat(np.arange(len(agents)), [sizes[a] for a in agents])
    scale = float(y @ y) / len(y)
    tau, sigma = np.full(len(agents), scale), scale
    mean, left = np.zeros(design.shape[1]), np.zeros(design.shape[1])
    for _ in range(_STEPS if scale > 0 else 0):
        prior = tau[owner]
        covariance = (design * prior) @ design.T + sigma * np.eye(len(y))
        gain = np.linalg.solve(covariance, design * prior).T  # [effects, n]
        mean = gain @ y
        left = prior - np.einsum("ij,ji->i", gain, design * prior)  # posterior variances
        square = mean**2 + np.maximum(left, 0.0)
        tau = _variances(square, owner, len(agents), _LEAST * scale)
        error = y - design @ mean
        fitted = np.einsum("ij,ji->", gain, design)  # effective number of parameters
        sigma = max(_LEAST * scale, float(error @ error) / max(1.0, len(y) - fitted))
    cuts = np.cumsum([sizes[a] for a in agents])[:-1]
    effects, errors = (dict(zip(agents, np.split(v, cuts))) for v in (mean, np.sqrt(np.maximum(left, 0.0))))
    error = y - design @ mean
    return Outcomes(effects, errors, slope, 1.0 - float(error @ error) / total, float(np.sqrt(total / len(y))))


def _variances(square: np.ndarray, owner: np.ndarray, agents: int, least: float) -> np.ndarray:
    """tau_A^2 of each agent: the mean square of its effects, their uncertainty included."""
    return np.array([max(least, square[owner == a].mean()) for a in range(agents)])
