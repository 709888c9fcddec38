"""How much the console trusts each agent: updates of the collaborative weights theta, float64 [A], pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Collaboration(Protocol):
    """How the console's trust in its agents follows their rewards."""

    def start(self, names: Sequence[str]) -> np.ndarray:
        """Theta before the first rewards, a probability vector float64 [A] in the order of the agents' names."""

    def update(self, theta: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """New theta, a probability vector float64 [A], from the agents' rewards R_A, float64 [A]."""


def project_to_simplex(theta: np.ndarray) -> np.ndarray:
    """The nearest probability vector in Euclidean distance (Duchi et al. 2008)."""
    descending = np.sort(theta)[::-1]
    excess = (np.cumsum(descending) - 1) / np.arange(1, len(theta) + 1)
    threshold = excess[np.flatnonzero(descending > excess)[-1]]
    return np.maximum(theta - threshold, 0.0)


def apply_floor(theta: np.ndarray, floor: float) -> np.ndarray:
    """The probability vector with no entry below `floor` that is nearest to theta in KL divergence: entries at the floor are
    fixed there and the others share what is left in proportion. Without an entry below the floor nothing changes."""
    if floor * len(theta) > 1:
        raise ValueError(
            f"a floor of {floor} for each of {len(theta)} agents is more than 1 in sum; at most {1 / len(theta):.4g} is possible"
        )
    low = np.zeros(len(theta), dtype=bool)
    result = theta.copy()
    while ((result < floor) & ~low).any():
        low |= result < floor
        if low.all():  # only rounding brings all of them there
            return np.full_like(theta, 1 / len(theta))
        result = np.where(low, floor, theta * (1 - floor * low.sum()) / theta[~low].sum())
    return result


def _checked(theta: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    theta, rewards = np.asarray(theta, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if theta.shape != rewards.shape:
        raise ValueError(f"theta has {theta.shape} and the agents' rewards have {rewards.shape}: one of each per agent is needed")
    if not np.isfinite(rewards).all():
        raise ValueError(f"the agents' rewards {rewards.tolist()} are not all finite")
    return theta, rewards


class _EqualStart:
    """Each agent weighs the same before the first rewards."""

    def start(self, names: Sequence[str]) -> np.ndarray:
        return np.full(len(names), 1 / len(names))


@dataclass(frozen=True)
class AdditiveCollaboration(_EqualStart):
    """Eq. 8, theta_A + rate * (R_A - Rbar), kept a probability vector.

    Eq. 8 leaves the sum as it is, so the projection acts only when an entry would become negative, which the paper allows.
    """

    rate: float

    def update(self, theta: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        theta, rewards = _checked(theta, rewards)
        theta = theta + self.rate * (rewards - rewards.mean())
        return theta if theta.min() >= 0 else project_to_simplex(theta)


@dataclass(frozen=True)
class MultiplicativeCollaboration(_EqualStart):
    """Multiplicative weights (Hedge): theta_A exp(rate * R_A), normalised, then held at `floor` so that no agent dies out."""

    rate: float
    floor: float

    def update(self, theta: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        theta, rewards = _checked(theta, rewards)
        exponent = self.rate * rewards
        theta = theta * np.exp(exponent - exponent.max())
        return apply_floor(theta / theta.sum(), self.floor)


@dataclass(frozen=True)
class FixedCollaboration(_EqualStart):
    """Theta stays what it was given: the paper's ablation "fixed theta".

    weights: agent -> weight, scaled to sum 1, one for each agent; empty: all the same
    """

    weights: Mapping[str, float]

    def start(self, names: Sequence[str]) -> np.ndarray:
        """See Collaboration.start. Raises ValueError unless the weights name exactly the agents, none negative, not all 0."""
        if not self.weights:
            return super().start(names)
        if set(self.weights) != set(names):
            raise ValueError(
                f"selection.theta names {sorted(self.weights)}, the agents are {sorted(names)}; give each of them a weight "
                "(0 is one)"
            )
        theta = np.array([self.weights[name] for name in names], dtype=np.float64)
        if not np.isfinite(theta).all() or theta.min() < 0 or not theta.sum() > 0:
            raise ValueError(f"selection.theta={dict(self.weights)} must be numbers that are not negative, and not all 0")
        return theta / theta.sum()

    def update(self, theta: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        theta, _ = _checked(theta, rewards)
        return theta


def build_collaboration(config: Any) -> Collaboration:
    """The rule of a selection config, chosen by `config.collaboration`.

    Raises:
        ValueError: for a name that is not known.
    """
    if config.collaboration == "multiplicative":
        return MultiplicativeCollaboration(config.theta_rate, config.theta_floor)
    if config.collaboration == "additive":
        return AdditiveCollaboration(config.theta_rate)
    if config.collaboration == "fixed":
        return FixedCollaboration(dict(config.theta))
    raise ValueError(f"selection.collaboration={config.collaboration!r} is not one of multiplicative, additive, fixed")
