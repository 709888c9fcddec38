"""Which documents are held out, and which ones labellers and tokenizer learn from: functions of the texts' hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mads.data.schema import DataError
from mads.noise import hash64

SMALLEST_HELDOUT_DOMAIN = 10  # different documents; a smaller domain is trained on as a whole


def text_keys(raw: bytes) -> tuple[int, int]:
    """(key, check) of a text's UTF-8 bytes, 64 bits each from two hashes that have nothing to do with each other.

    Equal texts have equal keys. Two different texts of a billion may share a key; that they share the check too has a probability
    of 10**-21.
    """
    key = hashlib.blake2b(raw, digest_size=8).digest()
    check = hashlib.blake2b(raw, digest_size=16).digest()[:8]
    return int.from_bytes(key, "little"), int.from_bytes(check, "little")


def heldout_documents(keys: np.ndarray, codes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which documents are held out, bool [n]: of each domain `fraction` of its different texts, at least one, by a hash.

    Equal texts are never on both sides, not even in two domains. A domain of fewer than SMALLEST_HELDOUT_DOMAIN different texts
    holds nothing out.

    Args:
        keys: uint64 [n], of `text_keys`
        codes: integers [n], each document's domain
    """
    if not 0 <= fraction <= 0.5:
        raise DataError(f"heldout_fraction {fraction} must be between 0 and 0.5")
    if fraction == 0 or not len(keys):
        return np.zeros(len(keys), dtype=bool)
    chosen = [np.zeros(0, np.uint64)]
    order = np.argsort(codes, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        different = np.unique(keys[members])
        if len(different) >= SMALLEST_HELDOUT_DOMAIN:
            count = max(1, round(fraction * len(different)))
            chosen.append(different[np.argsort(hash64(seed, "heldout", 0, different), kind="stable")[:count]])
    return np.isin(keys, np.concatenate(chosen))


def fit_documents(
    keys: np.ndarray, sizes: np.ndarray, classes: Sequence[np.ndarray], train: np.ndarray, max_bytes: float, seed: int
) -> np.ndarray:
    """Ascending indices of the training documents to learn from: about max_bytes of text by its hash, and one of every class.

    Args:
        keys, sizes: [n], of `text_keys` and in bytes
        classes: integers [n] each: domains, labels
        train: bool [n], the candidates
    """
    candidates = np.flatnonzero(train)
    order = candidates[np.argsort(hash64(seed, "fit", 0, keys[candidates]), kind="stable")]
    before = np.cumsum(sizes[order], dtype=np.int64) - sizes[order]
    chosen = [order[before < max_bytes]]
    chosen += [order[np.unique(codes[order], return_index=True)[1]] for codes in classes]
    return np.unique(np.concatenate(chosen))
