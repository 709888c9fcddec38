"""Which documents are held out, and which ones labellers and tokenizer learn from: functions of the texts' hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mads.data.schema import DataError
from mads.noise import hash64

LARGEST_HELDOUT_GROUP = 0.1  # of the different texts of its domain
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


def heldout_groups(
    keys: np.ndarray, codes: np.ndarray, groups: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, dict[int, tuple[int, int] | None]]:
    """Which documents are held out when whole groups (novels, speeches, web sites) go together: (bool [n], domain code -> (groups
    held out, groups of the domain), or None where the domain is split by document).

    In each domain groups come in the order of a hash until they hold `fraction` of its different texts. A group that holds more
    than LARGEST_HELDOUT_GROUP of them is passed over; a domain whose other groups hold less than half of them has no groups worth
    the name, and is split as by `heldout_documents`. Equal texts are never on both sides here either.

    Args:
        keys, codes: as for `heldout_documents`
        groups: uint64 [n], a hash of each document's group; equal hashes in two domains are two groups
    """
    held, counts, single = np.zeros(len(keys), dtype=bool), {}, []
    order = np.argsort(codes, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(keys) and fraction else []:
        code, texts = int(codes[members[0]]), len(np.unique(keys[members]))
        names, group_of = np.unique(groups[members], return_inverse=True)
        pairs = np.unique(np.stack([group_of.astype(np.uint64), keys[members]]), axis=1)[0]
        sizes = np.bincount(pairs.astype(np.int64), minlength=len(names))  # different texts of each group
        fit = np.flatnonzero(sizes <= LARGEST_HELDOUT_GROUP * texts)
        if 2 * sizes[fit].sum() < texts:
            single.append(members)
            counts[code] = None
            continue
        turn = fit[np.argsort(hash64(seed, "heldout-group", code, names[fit]), kind="stable")]
        before = np.cumsum(sizes[turn]) - sizes[turn]
        chosen = turn[before < fraction * texts]
        held[members] = np.isin(group_of, chosen)
        counts[code] = (len(chosen), len(names))
    if single:
        rest = np.concatenate(single)
        held[rest] = heldout_documents(keys[rest], codes[rest], fraction, seed)
    return np.isin(keys, keys[held]), counts


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
