"""Columns over a pool: one value per sample, shard after shard, memory-mapped and never joined.

A column is read by a slice (a view where it lies inside one shard) or by an array of positions. At hundreds of millions of
samples a joined copy would take more memory than everything else, so `np.asarray(column)` is for small pools and tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mads.data.schema import SHARD_SHIFT


class _Sharded:
    """What columns share: lengths of the shards, and where a position lies."""

    dtype: np.dtype

    def __init__(self, sizes: Sequence[int], dtype: np.dtype):
        self.first = np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))]).astype(np.int64)
        self.dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return int(self.first[-1])

    def __eq__(self, other) -> bool:
        raise TypeError("a column is not an array: compare column[...] or np.asarray(column)")

    __hash__ = None

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def __getitem__(self, where) -> np.ndarray:
        """Values of a contiguous slice, or at an integer array of positions [n], or the one value at a position.

        Raises:
            IndexError: a position outside the column, or a slice with a step.
        """
        if isinstance(where, slice):
            start, stop, step = where.indices(len(self))
            if step != 1:
                raise IndexError(f"a column is read in contiguous slices, not with step {step}")
            return self._run(start, max(start, stop))
        if isinstance(where, int | np.integer):
            return self[np.array([where])][0]
        where = np.asarray(where)
        if where.dtype.kind not in "iu" and where.size:
            raise IndexError(f"positions must be integers, not {where.dtype}")
        where = where.astype(np.int64, copy=False)
        if where.size and not (0 <= where.min() and where.max() < len(self)):
            raise IndexError(f"positions from {where.min()} to {where.max()} in a column of {len(self)} samples")
        return self._gather(where)

    def chunks(self, size: int = 1 << 20) -> Iterator[tuple[slice, np.ndarray]]:
        """(where, values) of consecutive slices of `size`; the last may be shorter."""
        for start in range(0, len(self), size):
            where = slice(start, min(start + size, len(self)))
            yield where, self[where]

    def shards_of(self, positions: np.ndarray) -> np.ndarray:
        """Shard of each position, int64."""
        return np.searchsorted(self.first, positions, side="right") - 1

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(shard, first row, last row) of the shards that a run of positions touches."""
        while start < stop:
            shard = int(self.shards_of(np.int64(start)))
            end = min(stop, int(self.first[shard + 1]))
            yield shard, start - int(self.first[shard]), end - int(self.first[shard])
            start = end

    def _run(self, start: int, stop: int) -> np.ndarray:
        raise NotImplementedError("abstract")

    def _gather(self, positions: np.ndarray) -> np.ndarray:
        raise NotImplementedError("abstract")


class ShardedColumn(_Sharded):
    """A column whose values are stored: one array [samples of the shard] per shard, all of one dtype."""

    def __init__(self, pieces: Sequence[np.ndarray], dtype: np.dtype):
        super().__init__([len(piece) for piece in pieces], dtype)
        self._pieces = tuple(pieces)
        if wrong := [piece.dtype for piece in pieces if piece.dtype != self.dtype]:
            raise ValueError(f"a column of {self.dtype} cannot hold pieces of {wrong[0]}")

    def _run(self, start: int, stop: int) -> np.ndarray:
        pieces = [self._pieces[shard][low:high] for shard, low, high in self._runs(start, stop)]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, self.dtype), *pieces])

    def _gather(self, positions: np.ndarray) -> np.ndarray:
        if len(self._pieces) == 1:
            return self._pieces[0][positions]
        shards = self.shards_of(positions)
        order = np.argsort(shards, kind="stable")  # one visit a shard
        borders = np.flatnonzero(np.diff(shards[order])) + 1
        out = np.empty(len(positions), dtype=self.dtype)
        for own in np.split(order, borders):
            if len(own):
                shard = shards[own[0]]
                out[own] = self._pieces[shard][positions[own] - self.first[shard]]
        return out


class IdColumn(_Sharded):
    """The sample ids, computed: shard << SHARD_SHIFT | row."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__(sizes, np.dtype(np.int64))

    def _run(self, start: int, stop: int) -> np.ndarray:
        runs = [(shard << SHARD_SHIFT) + np.arange(low, high, dtype=np.int64) for shard, low, high in self._runs(start, stop)]
        return runs[0] if len(runs) == 1 else np.concatenate([np.zeros(0, np.int64), *runs])

    def _gather(self, positions: np.ndarray) -> np.ndarray:
        shards = self.shards_of(positions)
        return (shards << np.int64(SHARD_SHIFT)) + (positions - self.first[shards])
