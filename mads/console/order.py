"""The order in which selectors take samples. One place, because every way to find the first samples must use the same bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mads.noise import gumbel


@dataclass(frozen=True)
class Draw:
    """What names a decision's noise."""

    seed: int
    round: int


class Order(Protocol):
    """The order in which a selector takes samples: by use count first if `fewer_uses_first`, then by key, then by `ties`.

    Keys are computed element by element, so those of a piece of the pool are bit for bit those of the whole.
    """

    scored: bool  # whether the key depends on S
    fewer_uses_first: bool

    def key(
        self, draw: Draw, ids: np.ndarray, uses: np.ndarray, total: np.ndarray | None, bounds: tuple[float, float]
    ) -> np.ndarray:
        """float64 [n], smallest first.

        Args:
            total: float64 [n], S of Eq. 6, None if the order is not scored; bounds: its least and greatest value in all.
        """
        ...


@dataclass(frozen=True)
class RandomOrder:
    """Standard Gumbel noise alone."""

    scored: bool = False
    fewer_uses_first: bool = True

    def key(self, draw, ids, uses, total, bounds):
        """See Order.key."""
        key = gumbel(draw.seed, "decide/noise", draw.round, ids)
        return np.negative(key, out=key)


@dataclass(frozen=True)
class TopKOrder:
    """S mapped to [0, 1] (all 1 if all are equal), divided by 1 + use_decay * uses."""

    use_decay: float
    scored: bool = True
    fewer_uses_first: bool = False

    def key(self, draw, ids, uses, total, bounds):
        """See Order.key."""
        low, high = bounds
        key = (total - low) / (high - low) if high > low else np.ones_like(total)
        key /= 1 + self.use_decay * uses
        return np.negative(key, out=key)


@dataclass(frozen=True)
class GumbelOrder:
    """S / temperature plus standard Gumbel noise."""

    temperature: float
    scored: bool = True
    fewer_uses_first: bool = True

    def key(self, draw, ids, uses, total, bounds):
        """See Order.key."""
        key = total - bounds[1]  # equal scores become exact zeros, and leave the noise its last bit
        key /= self.temperature
        key += gumbel(draw.seed, "decide/noise", draw.round, ids)
        return np.negative(key, out=key)
