"""Counter-based randomness: every draw is a pure function of (seed, stream, round, id).

Nothing here has a state, so a decision, a probe draw or a split does not depend on the number of ranks, on their order, on
how the pool was cut, or on what was drawn before. The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))
_LAST = np.uint64(31)
_BLOCK = 1 << 14  # ids mixed at a time: two buffers of 128 KiB stay in a core's cache


def _mix_(x: np.ndarray, scratch: np.ndarray) -> None:
    """In place; arithmetic modulo 2**64 is the point (NumPy does not warn of it in arrays)."""
    x += _GOLDEN
    for shift, factor in _ROUNDS:
        np.right_shift(x, shift, out=scratch)
        x ^= scratch
        x *= factor
    np.right_shift(x, _LAST, out=scratch)
    x ^= scratch


def _key(seed: int, stream: str, round_: int) -> np.uint64:
    raw = hashlib.blake2b(f"{seed}/{stream}/{round_}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(raw, "little"))


def _hashed(seed: int, stream: str, round_: int, ids: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The hashes, a block at a time in one buffer that the next block overwrites."""
    key = _key(seed, stream, round_)
    buffer, scratch = np.empty((2, min(len(ids), _BLOCK)), dtype=np.uint64)
    for start in range(0, len(ids), _BLOCK):
        where = slice(start, min(start + _BLOCK, len(ids)))
        count = where.stop - start
        block = buffer[:count]
        np.copyto(block, ids[where], casting="unsafe")
        _mix_(block, scratch[:count])
        block ^= key
        _mix_(block, scratch[:count])
        yield where, block


def _uniform_(hashes: np.ndarray, out: np.ndarray) -> None:
    hashes >>= np.uint64(11)
    out[:] = hashes
    out += 0.5
    out *= 2.0**-53


def hash64(seed: int, stream: str, round_: int, ids: np.ndarray) -> np.ndarray:
    """uint64 hash of each id, shape [n]. `stream` names the purpose, so that two uses never share their noise."""
    ids = np.asarray(ids)
    out = np.empty(len(ids), dtype=np.uint64)
    for where, hashes in _hashed(seed, stream, round_, ids):
        out[where] = hashes
    return out


def uniform(seed: int, stream: str, round_: int, ids: np.ndarray) -> np.ndarray:
    """float64 in the open interval (0, 1), shape [n]."""
    ids = np.asarray(ids)
    out = np.empty(len(ids))
    for where, hashes in _hashed(seed, stream, round_, ids):
        _uniform_(hashes, out[where])
    return out


def gumbel(seed: int, stream: str, round_: int, ids: np.ndarray) -> np.ndarray:
    """Standard Gumbel noise, float64, shape [n]: adding it to log-weights and taking the k largest samples k items without
    replacement in proportion to the weights (Kool, van Hoof and Welling 2019)."""
    ids = np.asarray(ids)
    out = np.empty(len(ids))
    for where, hashes in _hashed(seed, stream, round_, ids):
        noise = out[where]
        _uniform_(hashes, noise)
        for _ in range(2):
            np.log(noise, out=noise)
            np.negative(noise, out=noise)
    return out
