"""Counter-based randomness: every draw is a pure function of (seed, stream, round, id).

Nothing here has a state, so a decision, a probe draw or a split does not depend on the number of ranks, on their order, on
how the pool was cut, or on what was drawn before. The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _key(seed: int, stream: str, round_: int) -> np.uint64:
    raw = hashlib.blake2b(f"{seed}/{stream}/{round_}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(raw, "little"))


def hash64(seed: int, stream: str, round_: int, ids: np.ndarray) -> np.ndarray:
    """uint64 hash of each id, shape [n]. `stream` names the purpose, so that two uses never share their noise."""
    ids = np.asarray(ids).astype(np.uint64)
    return _mix(_mix(ids) ^ _key(seed, stream, round_))


def uniform(seed: int, stream: str, round_: int, ids: np.ndarray) -> np.ndarray:
    """float64 in the open interval (0, 1), shape [n]."""
    return ((hash64(seed, stream, round_, ids) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def gumbel(seed: int, stream: str, round_: int, ids: np.ndarray) -> np.ndarray:
    """Standard Gumbel noise, float64, shape [n]: adding it to log-weights and taking the k largest samples k items without
    replacement in proportion to the weights (Kool, van Hoof and Welling 2019)."""
    return -np.log(-np.log(uniform(seed, stream, round_, ids)))
