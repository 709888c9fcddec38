"""MinHash signatures (Broder 1997) of texts as sets of word 5-grams, and the bands by which near-duplicates are found.

The share of equal slots of two signatures is an unbiased estimate of the Jaccard similarity of the two sets, with a standard
deviation of sqrt(J (1 - J) / SLOTS).

The slots are those of datasketch's scheme "affine32" with seed 1, bit for bit (a * h + b modulo 2**32 with odd a, of hashes that
the finaliser of MurmurHash3 has spread), computed for many documents at a time instead of one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from mads.data.cutting import batches
from mads.data.schema import DataError
from mads.hygiene.words import BATCH, hash_words, mixed, windows

NGRAM = 5  # words
SLOTS = 128
RECALL = 0.99  # with which a pair exactly at the threshold shares a band
_SEED = 1
_BLOCK = 1 << 15  # grams that are permuted at a time


def bands(threshold: float, slots: int = SLOTS, recall: float = RECALL) -> tuple[int, int]:
    """(bands, rows in each): the most rows for which a pair at the threshold shares at least one band with probability `recall`.

    With b bands of r rows a pair of similarity J becomes a candidate with probability 1 - (1 - J**r)**b (Leskovec et al.,
    Mining of Massive Datasets, section 3.4.2). More rows mean fewer candidates that fail.

    Raises:
        DataError: a threshold that is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise DataError(f"near-duplicate threshold {threshold} must be above 0 and at most 1 (0.8 is usual)")
    rows = max(
        (r for r in range(1, slots + 1) if candidate_probability(threshold, slots // r, r) >= recall),
        default=1,
    )
    return slots // rows, rows


def candidate_probability(similarity: float, bands: int, rows: int) -> float:
    """That two signatures of independent slots agree in all rows of at least one band."""
    return 1.0 - (1.0 - similarity**rows) ** bands


def signatures(texts: Sequence[str]) -> np.ndarray:
    """uint32 [n, SLOTS]; 512 bytes a document, a function of its text alone.

    A text of fewer than NGRAM words is the set of one gram, all of its words; a text without a word is the set of itself.
    """
    found = [np.zeros((0, SLOTS), np.uint32)]
    for part in batches(texts, BATCH):
        hashes, offsets = grams(texts[part])
        found.append(minima(hashes, offsets))
    return np.concatenate(found)


def grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(uint32 [g], int64 [n + 1]): hashes of the grams of each text, and where those of each text begin; every text has one."""
    words = hash_words(texts)
    counts = np.diff(words.offsets)
    offsets = np.concatenate([[0], np.cumsum(np.maximum(counts - NGRAM + 1, 1))])
    hashes = np.empty(offsets[-1], np.uint64)
    is_short = np.zeros(len(hashes), bool)
    is_short[offsets[:-1][counts < NGRAM]] = True
    text = np.repeat(np.arange(len(texts)), counts)
    inside = text[NGRAM - 1 :] == text[: max(0, len(text) - NGRAM + 1)]
    hashes[~is_short] = windows(words.hashes, NGRAM)[inside]
    for length in range(1, NGRAM):
        short = np.flatnonzero(counts == length)
        hashes[offsets[short]] = windows(words.hashes, length)[words.offsets[short]] if len(short) else 0
    for i in np.flatnonzero(counts == 0):
        digest = hashlib.blake2b(texts[i].encode("utf-8", "surrogatepass"), digest_size=8).digest()
        hashes[offsets[i]] = int.from_bytes(digest, "little")
    return (mixed(hashes) >> np.uint64(32)).astype(np.uint32), offsets


@cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """a (odd) and b of each slot, uint32 [SLOTS]. RandomState gives the same numbers in every version of NumPy."""
    random = np.random.RandomState(_SEED)
    a = random.randint(0, 1 << 31, SLOTS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return a, random.randint(0, 1 << 32, SLOTS, dtype=np.uint32)


def minima(hashes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """uint32 [n, SLOTS]: for each slot the smallest a * h + b over the hashes offsets[i] to offsets[i + 1], at least one."""
    a, b = _permutations()
    spread = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    spread = (spread ^ (spread >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    spread ^= spread >> np.uint32(16)
    least = np.full((SLOTS, len(offsets) - 1), 0xFFFFFFFF, np.uint32)
    for low in range(0, len(spread), _BLOCK):
        block = spread[low : low + _BLOCK]
        first = int(np.searchsorted(offsets, low, side="right")) - 1
        last = int(np.searchsorted(offsets, low + len(block), side="left"))
        starts, permuted = np.maximum(offsets[first:last] - low, 0), np.empty_like(block)
        for slot in range(SLOTS):
            np.multiply(block, a[slot], out=permuted)
            np.add(permuted, b[slot], out=permuted)
            row = least[slot, first:last]
            np.minimum(row, np.minimum.reduceat(permuted, starts), out=row)
    return np.ascontiguousarray(least.T)
