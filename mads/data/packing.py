"""Packing samples of different lengths into rows of seq_length, in decided order, as a pure function of the lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mads.data.schema import DataError


@dataclass(frozen=True)
class Packing:
    """Which samples share a row. Rows are numbered in the order of their first sample, so early rows hold early decisions.

    order: int64 [n], sample indices grouped by row, inside a row in the order of their place in it
    starts: int64 [rows + 1], row r holds order[starts[r]:starts[r + 1]]
    """

    seq_length: int
    order: np.ndarray
    starts: np.ndarray
    _targets: np.ndarray  # int64 [n + 1], running sum of (length - 1) along `order`
    _tokens: np.ndarray  # int64 [n + 1], running sum of length along `order`

    @property
    def rows(self) -> int:
        return len(self.starts) - 1

    def samples_of_row(self, row: int) -> np.ndarray:
        """Sample indices of a row, left to right, int64."""
        return self.samples_of_rows(row, row + 1)

    def samples_of_rows(self, first: int, last: int) -> np.ndarray:
        """Sample indices of the rows first .. last - 1, in row-major order, int64."""
        return self.order[self.starts[first] : self.starts[last]]

    def valid_tokens(self, first: int, last: int) -> int:
        """Targets in the rows first .. last - 1: a sample of n tokens has n - 1."""
        return int(self._targets[self.starts[last]] - self._targets[self.starts[first]])

    def tokens(self, first: int, last: int) -> int:
        """Tokens in the rows first .. last - 1, padding not counted."""
        return int(self._tokens[self.starts[last]] - self._tokens[self.starts[first]])


def _place(lengths: np.ndarray, seq_length: int, open_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Best fit of samples shorter than seq_length: (row of each sample, index of the sample that opened each row).

    `occupied` is a bit set over free space: bit f is set while some open row has f positions left. The smallest sufficient free
    space is then one shift and one lowest-bit extraction, whatever the number of open rows. When a row more than `open_rows`
    would be open, the fullest one is closed.
    """
    smallest = int(lengths.min())
    by_free: list[list[int]] = [[] for _ in range(seq_length)]
    bit = [1 << f for f in range(seq_length)]
    occupied, open_count, opened = 0, 0, []
    rows = [0] * len(lengths)
    for i, n in enumerate(lengths.tolist()):
        fitting = occupied >> n
        if fitting:
            free = n + (fitting & -fitting).bit_length() - 1
            stack = by_free[free]
            row = stack.pop()
            if not stack:
                occupied ^= bit[free]
            open_count -= 1
            free -= n
        else:
            row, free = len(opened), seq_length - n
            opened.append(i)
        rows[i] = row
        if free < smallest:  # nothing fits any more
            continue
        by_free[free].append(row)
        occupied |= bit[free]
        open_count += 1
        if open_count > open_rows:
            fullest = (occupied & -occupied).bit_length() - 1
            by_free[fullest].pop()
            if not by_free[fullest]:
                occupied ^= bit[fullest]
            open_count -= 1
    return np.array(rows, dtype=np.int64), np.array(opened, dtype=np.int64)


def pack(lengths: np.ndarray, seq_length: int, open_rows: int = 64) -> Packing:
    """Pack samples of `lengths` [n] (tokens, in decided order) into rows of `seq_length`. Every sample is placed exactly once.

    Best fit over at most `open_rows` rows that may still grow: deterministic, about a microsecond a sample; samples of full
    length take a row each without entering the search.

    Raises:
        DataError: a sample without tokens, or longer than seq_length.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if seq_length < 1 or open_rows < 1:
        raise ValueError(f"seq_length {seq_length} and open_rows {open_rows} must be at least 1")
    n = len(lengths)
    if n and not (1 <= lengths.min() and lengths.max() <= seq_length):
        bad = int(np.argmax((lengths < 1) | (lengths > seq_length)))
        raise DataError(f"sample {bad} of the list has {lengths[bad]} tokens; a row of {seq_length} takes 1 to {seq_length}")
    opener = np.arange(n, dtype=np.int64)  # index of the sample that opened this sample's row: a full sample opens its own
    short = np.flatnonzero(lengths < seq_length)
    if len(short):
        rows, opened = _place(lengths[short], seq_length, open_rows)
        opener[short] = short[opened[rows]]
    is_opener = opener == np.arange(n)
    row_of_sample = (np.cumsum(is_opener) - 1)[opener]
    order = np.argsort(row_of_sample, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_of_sample, minlength=int(is_opener.sum())))]).astype(np.int64)
    ordered = lengths[order]
    return Packing(seq_length, order, starts, np.append(0, np.cumsum(ordered - 1)), np.append(0, np.cumsum(ordered)))
