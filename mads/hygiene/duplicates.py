"""Which documents repeat an earlier one: exactly, or nearly by their MinHash signatures.

Input are arrays of one row a document, as parallel workers left them on disk (memory-mapped), in input order. The result depends
on the rows in their order, not on how they were cut into arrays. In memory at a time: 8 bytes a document, and about 50 for each
of at most _SELECTED documents.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence

import numpy as np

from mads.hygiene.minhash import SLOTS, bands
from mads.hygiene.words import mixed

_SELECTED = 1 << 25  # documents that are sorted at a time
_ROWS = 1 << 14  # signatures that are in memory at a time
_LEADERS = 256  # documents of one bucket that are compared with all later ones of it

Rows = np.ndarray | Sequence[np.ndarray]


class _Stack:
    """Arrays of equal row shape as one, gathered by row."""

    def __init__(self, arrays: Rows):
        self.arrays = [arrays] if isinstance(arrays, np.ndarray) else list(arrays)
        self.offsets = np.cumsum([0, *map(len, self.arrays)])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        owner = np.searchsorted(self.offsets, rows, side="right") - 1
        out = np.empty((len(rows), *self.arrays[0].shape[1:]), self.arrays[0].dtype)
        for i in np.unique(owner):
            mine = owner == i
            out[mine] = self.arrays[i][rows[mine] - self.offsets[i]]
        return out

    def pieces(self, rows: int):
        """(index of the first, piece of at most `rows`) one after the other."""
        for start, array in zip(self.offsets, self.arrays):
            for low in range(0, len(array), rows):
                yield int(start) + low, array[low : low + rows]


def text_keys(texts: Sequence[str]) -> np.ndarray:
    """uint64 [n, 2]: 128 bits of each text's BLAKE2b. Equal texts have equal keys; unequal ones do not, for all that is known."""
    digests = b"".join(hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=16).digest() for t in texts)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def exact_duplicates(keys: Rows, alive: np.ndarray | None = None) -> np.ndarray:
    """int64 [n]: the first document with the same key, or -1 for that first document itself.

    Args:
        keys: uint64 [n, 2] in all, from text_keys
        alive: bool [n]; the others are left out: they are no duplicate (-1) and nothing duplicates them
    """
    stack = _Stack(keys)
    result = np.full(len(stack), -1, np.int64)
    for documents, first in _selections(stack, alive, lambda piece: piece[:, 0]):
        second = stack[documents][:, 1]
        order = np.lexsort((documents, second, first))
        documents, first, second = documents[order], first[order], second[order]
        new = np.ones(len(documents), bool)
        new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
        heads = documents[new][np.cumsum(new) - 1]
        result[documents[~new]] = heads[~new]
    return result


def near_duplicates(
    signatures: Rows, threshold: float, alive: np.ndarray | None = None, scratch: str | os.PathLike | None = None
) -> np.ndarray:
    """int64 [n]: the first document of the cluster that each document belongs to, or -1 for that first document itself.

    Two documents that share a band (mads.hygiene.minhash.bands) and whose estimated Jaccard similarity is at least `threshold`
    are linked; clusters are what links connect. So a document can be further from the one that is kept than `threshold` allows,
    if others lie between them: `similarities` tells how far. Of documents that are kept already and only here to be compared
    with (they come first), ignore the result: a new one may link two of them.

    Args:
        signatures: uint32 [n, SLOTS] in all
        threshold: in (0, 1]
        alive: bool [n]; the others are left out: they are no duplicate (-1) and nothing duplicates them
        scratch: folder for a temporary file of 8 bytes a document and band; None takes the system's

    Raises:
        DataError: the threshold is out of its range.
    """
    count, rows = bands(threshold)
    stack = _Stack(signatures)
    parent = np.arange(len(stack))
    if len(stack) == 0:  # an empty file cannot be mapped
        return parent
    with tempfile.TemporaryFile(dir=scratch) as file:
        keys = np.memmap(file, np.uint64, "w+", shape=(count, len(stack)))
        for first, piece in stack.pieces(_ROWS):
            for band in range(count):
                keys[band, first : first + len(piece)] = _band_keys(piece[:, band * rows : (band + 1) * rows])
        for band in range(count):
            for documents, key in _selections(_Stack(keys[band]), alive, lambda piece: piece):
                _link(parent, documents, key, stack, threshold)
        del keys
    _flatten(parent)
    for low in range(0, len(parent), _ROWS):
        piece = parent[low : low + _ROWS]
        piece[piece == np.arange(low, low + len(piece))] = -1
    return parent


def similarities(signatures: Rows, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float32 [m]: estimated Jaccard similarity of the documents left[i] and right[i]."""
    stack = _Stack(signatures)
    return _equal_slots(stack, np.asarray(left), np.asarray(right)).astype(np.float32) / np.float32(SLOTS)


def _equal_slots(stack: _Stack, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """int64 [m]: how many slots of both signatures are equal."""
    counts = np.empty(len(left), np.int64)
    for low in range(0, len(left), _ROWS):
        part = slice(low, low + _ROWS)
        counts[part] = np.count_nonzero(stack[left[part]] == stack[right[part]], axis=1)
    return counts


def _band_keys(columns: np.ndarray) -> np.ndarray:
    """uint64 [n] of uint32 [n, rows]: equal rows have equal keys; the few others that do are told apart by their signatures."""
    key = np.zeros(len(columns), np.uint64)
    for row in range(columns.shape[1]):
        key = mixed(key * np.uint64(0x9E3779B97F4A7C15) + columns[:, row] + np.uint64(1))
    return key


def _selections(stack: _Stack, alive: np.ndarray | None, key_of):
    """(documents int64 [m], keys uint64 [m]) of those that share their key with another one, by ranges of the key.

    Equal keys come together; each selection is ordered by key, then by document.
    """
    if len(stack) == 0:
        return
    ranges = 1
    while len(stack) > ranges * _SELECTED:
        ranges *= 2
    bits = ranges.bit_length() - 1
    for low in range(ranges):
        documents, keys = [], []
        for first, piece in stack.pieces(1 << 20):
            key = key_of(piece)
            mine = np.ones(len(key), bool) if alive is None else alive[first : first + len(key)].copy()
            if bits:
                mine &= key >> np.uint64(64 - bits) == np.uint64(low)
            rows = np.flatnonzero(mine)
            documents.append(rows + first)
            keys.append(key[rows])
        document, key = np.concatenate(documents), np.concatenate(keys)
        del documents, keys
        order = np.argsort(key)
        key = key[order]
        shared = np.zeros(len(key), bool)
        shared[1:] = key[1:] == key[:-1]
        shared[:-1] |= shared[1:]
        document, key = document[order[shared]], key[shared]
        order = np.lexsort((document, key))
        yield document[order], key[order]


def _link(parent: np.ndarray, documents: np.ndarray, keys: np.ndarray, stack: _Stack, threshold: float) -> None:
    """Join what is similar enough among documents with equal keys: the first of each bucket is compared with all later ones that
    are not in its cluster yet, then the second, and so on."""
    needed = threshold * SLOTS - 1e-9
    for leader in range(_LEADERS):
        documents, keys = _undecided(parent, documents, keys, leader)
        if not len(documents):
            return
        new = np.concatenate([[True], keys[1:] != keys[:-1]])
        begin = np.flatnonzero(new)[np.cumsum(new) - 1]
        later = np.flatnonzero(np.arange(len(documents)) > begin + leader)
        left, right = documents[begin[later] + leader], documents[later]
        apart = _roots(parent, left) != _roots(parent, right)
        left, right = left[apart], right[apart]
        similar = _equal_slots(stack, left, right) >= needed
        _join(parent, left[similar], right[similar])


def _undecided(parent: np.ndarray, documents: np.ndarray, keys: np.ndarray, leader: int) -> tuple[np.ndarray, np.ndarray]:
    """Only the buckets that have documents after number `leader` and lie in more than one cluster."""
    if not len(documents):
        return documents, keys
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    sizes = np.diff(np.append(starts, len(documents)))
    roots = _roots(parent, documents)
    open_ = (np.minimum.reduceat(roots, starts) != np.maximum.reduceat(roots, starts)) & (sizes > leader + 1)
    chosen = np.repeat(open_, sizes)
    return documents[chosen], keys[chosen]


def _roots(parent: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The first document of each one's cluster; shortens the ways to it."""
    root = parent[documents]
    while len(root) and np.any((above := parent[root]) != root):
        root = above
    parent[documents] = root
    return root


def _join(parent: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Union of clusters: the root with the smaller number becomes the parent of the other, so that roots come first."""
    while len(left):
        one, other = _roots(parent, left), _roots(parent, right)
        apart = one != other
        left, right = left[apart], right[apart]
        np.minimum.at(parent, np.maximum(one, other)[apart], np.minimum(one, other)[apart])


def _flatten(parent: np.ndarray) -> None:
    """Make every document point to its root."""
    for low in range(0, len(parent), 1 << 20):
        _roots(parent, np.arange(low, min(low + (1 << 20), len(parent))))
