"""The order in which selectors take samples. One place, because every way to find the first samples must use the same bits.

A sample's place is its word, a non-negative int64, and among equal words a hash of (seed, round, id). The upper 16 bits of the
word are the use count where fewer uses come first; the lower 47 are the key: sign, exponent and the first 35 bits of the
mantissa of a float64. Keys that agree in 36 significant bits are equal, and the hash decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mads.noise import gumbel, hash64

KEY_BITS = 47
MOST_USES = (1 << 16) - 1


@dataclass(frozen=True)
class Draw:
    """What names a decision's noise."""

    seed: int
    round: int


class Order(Protocol):
    """The order in which a selector takes samples: by use count first if `fewer_uses_first`, then by key, then by `tie_hash`.

    Keys are computed element by element, so those of a piece of the pool are bit for bit those of the whole.
    """

    scored: bool  # whether the key depends on S
    fewer_uses_first: bool

    def key(
        self, draw: Draw, ids: np.ndarray, uses: np.ndarray, total: np.ndarray | None, bounds: tuple[float, float]
    ) -> np.ndarray:
        """int64 [n] in 0 .. 2**47 - 1, smallest first.

        Args:
            total: float64 [n], S of Eq. 6, None if the order is not scored; bounds: its least and greatest value in all.
        """
        ...


def words_of(order: Order, draw: Draw, ids: np.ndarray, uses: np.ndarray, total: np.ndarray | None, bounds) -> np.ndarray:
    """int64 [n]: use count (if it plays a part) and key in one number that sorts as the pair does."""
    words = order.key(draw, ids, uses, total, bounds)
    if order.fewer_uses_first:
        words |= uses.astype(np.int64) << np.int64(KEY_BITS)
    return words


def tie_hash(draw: Draw, ids: np.ndarray) -> np.ndarray:
    """uint64 [n]: the order of samples with equal words. Different ids never share one, because the hash is a bijection."""
    return hash64(draw.seed, "decide/ties", draw.round, ids)


def ordered_bits(key: np.ndarray) -> np.ndarray:
    """int64 [n], the first 47 bits of finite float64 keys in the order of the numbers; both zeros get equal bits."""
    bits = (key + 0.0).view(np.uint64)  # adding 0 turns -0 into 0
    sign = bits.view(np.int64) >> np.int64(63)  # all bits of a negative number are flipped, of others the first
    bits ^= sign.view(np.uint64) | np.uint64(1 << 63)
    bits >>= np.uint64(64 - KEY_BITS)
    return bits.view(np.int64)


def ordered_value(bits: np.ndarray) -> np.ndarray:
    """Inverse of `ordered_bits`, float64 [n], to the 36 significant bits that it kept."""
    bits = bits.astype(np.uint64) << np.uint64(64 - KEY_BITS)
    sign = np.uint64(1 << 63)
    kept = ~np.uint64((1 << (64 - KEY_BITS)) - 1)  # of a negative number the bits that were cut off must not come back as ones
    return np.where(bits >= sign, bits ^ sign, ~bits & kept).view(np.float64)


@dataclass(frozen=True)
class HashOrder:
    """A hash alone: random, and cheaper than Gumbel noise where nothing is to be equal to a scored order."""

    scored: bool = False
    fewer_uses_first: bool = True

    def key(self, draw, ids, uses, total, bounds):
        """See Order.key."""
        bits = hash64(draw.seed, "decide/noise", draw.round, ids)
        bits >>= np.uint64(64 - KEY_BITS)
        return bits.view(np.int64)


@dataclass(frozen=True)
class RandomOrder:
    """Standard Gumbel noise alone: the order of `GumbelOrder` with equal scores."""

    scored: bool = False
    fewer_uses_first: bool = True

    def key(self, draw, ids, uses, total, bounds):
        """See Order.key."""
        key = gumbel(draw.seed, "decide/noise", draw.round, ids)
        return ordered_bits(np.negative(key, out=key))


@dataclass(frozen=True)
class TopKOrder:
    """S mapped to [0, 1] (all 1 if all are equal), divided by 1 + use_decay * uses.

    Dividing a negative score would raise it, so the map comes first.
    """

    use_decay: float
    scored: bool = True
    fewer_uses_first: bool = False

    def key(self, draw, ids, uses, total, bounds):
        """See Order.key."""
        low, high = bounds
        key = (total - low) / (high - low) if high > low else np.ones_like(total)
        key /= 1 + self.use_decay * uses
        return ordered_bits(np.negative(key, out=key))


@dataclass(frozen=True)
class GumbelOrder:
    """S / temperature plus standard Gumbel noise: sampling without replacement in proportion to exp(S / temperature).

    The agents' scores are shrunk rewards in standard deviations of one round's rewards, so they are on one scale as they are.
    Standardising them again would undo the shrinkage: labels that differ by noise alone would be preferred as strongly as others.
    """

    temperature: float
    scored: bool = True
    fewer_uses_first: bool = True

    def key(self, draw, ids, uses, total, bounds):
        """See Order.key."""
        key = total - bounds[1]  # equal scores become exact zeros, and leave the noise its last bit
        key /= self.temperature
        key += gumbel(draw.seed, "decide/noise", draw.round, ids)
        return ordered_bits(np.negative(key, out=key))


@dataclass(frozen=True)
class ProportionalOrder:
    """Without replacement in proportion to S mapped to [0, 1] (all 1 if all are equal): Gumbel noise on its logarithm.

    Scores of agents may be negative, hence the map. What has the least score comes after all others, in random order.
    """

    scored: bool = True
    fewer_uses_first: bool = True

    def key(self, draw, ids, uses, total, bounds):
        """See Order.key."""
        low, high = bounds
        key = (total - low) / (high - low) if high > low else np.ones_like(total)
        np.maximum(key, np.finfo(np.float64).tiny, out=key)  # log(0) has no place in the order of finite numbers
        np.log(key, out=key)
        key += gumbel(draw.seed, "decide/noise", draw.round, ids)
        return ordered_bits(np.negative(key, out=key))


def scored_order(selector: str, temperature: float) -> Order:
    """The order by S that a selector names, fewer uses first: top_k, gumbel (with its temperature) or proportional.

    Raises:
        ValueError: for another name.
    """
    if selector not in ("top_k", "gumbel", "proportional"):
        raise ValueError(f"selection.selector={selector!r} is not one of top_k, gumbel, proportional")
    if selector == "gumbel":
        return GumbelOrder(temperature)
    return TopKOrder(0.0, fewer_uses_first=True) if selector == "top_k" else ProportionalOrder()
