"""Packing samples of different lengths into rows of seq_length, in decided order, as a pure function of the lengths."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

import numpy as np

from mads.data.schema import DataError

OPEN_ROWS = 256
_CHUNK = 1 << 12  # samples that are placed at a time; the result does not depend on it


@dataclass(frozen=True)
class Packing:
    """Which samples share a row: consecutive rows.

    order: int64 [n], sample indices grouped by row, inside a row in the order of their place in it
    starts: int64 [rows + 1], row r holds order[starts[r]:starts[r + 1]]
    """

    order: np.ndarray
    starts: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.starts) - 1

    def samples_of_row(self, row: int) -> np.ndarray:
        """Sample indices of a row, left to right, int64."""
        return self.order[self.starts[row] : self.starts[row + 1]]


class Packer:
    """Packs samples into rows one after another: rows come out as they are finished, long before the last sample is placed.

    Best fit over the rows that may still grow: a sample goes into the row with the least free space that suffices, of equal ones
    into the one that reached it last, else into a new row. A row is closed when it is full, when `open_rows` newer rows were
    opened by samples shorter than a row, or when it is SPAN samples old. Rows are numbered in the order of their first sample,
    so early rows hold early decisions. Deterministic: a pure function of the lengths, however the rows are taken.

    Args:
        lengths: integers [n], tokens of each sample, in decided order.

    Raises:
        DataError: a sample without tokens, or longer than seq_length.
    """

    SPAN = 1 << 15  # samples; without it a single short sample among full rows would hold them back to the end

    def __init__(self, lengths: np.ndarray, seq_length: int, open_rows: int = OPEN_ROWS):
        lengths = np.asarray(lengths)
        if seq_length < 1 or open_rows < 1:
            raise ValueError(f"seq_length {seq_length} and open_rows {open_rows} must be at least 1")
        if len(lengths) and not (1 <= lengths.min() and lengths.max() <= seq_length):
            bad = int(np.argmax((lengths < 1) | (lengths > seq_length)))
            raise DataError(f"sample {bad} of the list has {lengths[bad]} tokens; a row of {seq_length} takes 1 to {seq_length}")
        self._lengths, self._seq_length, self._open_rows = lengths, seq_length, open_rows
        self._placed = 0  # samples
        self._rows = self._taken = self._ready = 0  # rows opened, handed out, and known to be finished
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []  # placed and not handed out: indices of samples, their rows
        # Rows of short samples, counted by their *turn*. Those that may grow, by ascending free space, of equal ones the newest
        # first; and the window of turns from `_oldest` on: the index of the sample that opened each, and its row.
        self._free: list[int] = []
        self._open: list[int] = []
        self._free_of: dict[int, int] = {}
        self._oldest = 0
        self._openers: deque[int] = deque()
        self._numbers: list[int] = []

    def take(self, count: int) -> Packing | None:
        """The next `count` rows, or None if the samples do not fill that many; nothing is lost then."""
        while self._ready - self._taken < count:
            if self._placed == len(self._lengths):
                return None
            self._place()
        self._taken += count
        none = np.zeros(0, np.int64)
        samples, rows = (np.concatenate(arrays) for arrays in zip((none, none), *self._waiting))
        due = rows < self._taken
        self._waiting = [(samples[~due], rows[~due])]
        samples, rows = samples[due], rows[due]
        counts = np.bincount(rows - (self._taken - count), minlength=count)
        return Packing(samples[np.argsort(rows, kind="stable")], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def take_all(self) -> Packing:
        """All rows that were not taken yet."""
        while self._placed < len(self._lengths):
            self._place()
        return self.take(self._ready - self._taken)

    def _place(self) -> None:
        """Place the next samples. Full ones take a row each without entering the search."""
        first, last = self._placed, min(self._placed + _CHUNK, len(self._lengths))
        lengths = self._lengths[first:last]
        short = np.flatnonzero(lengths < self._seq_length)
        oldest, opened = self._oldest, self._oldest + len(self._openers)
        turns = self._search((short + first).tolist(), lengths[short].tolist())
        newest = self._oldest + len(self._openers)
        opens = lengths == self._seq_length
        if newest > opened:
            opens[short[np.searchsorted(np.maximum.accumulate(turns), np.arange(opened, newest))]] = True
        row_of = self._rows - 1 + np.cumsum(opens)
        numbers = np.concatenate([np.array(self._numbers, np.int64), row_of[opens & (lengths < self._seq_length)]])
        row_of[short] = numbers[turns - oldest]
        self._rows += int(opens.sum())
        self._waiting.append((np.arange(first, last), row_of))
        self._placed = last
        while self._openers and (self._oldest not in self._free_of or self._openers[0] < last - self.SPAN):
            self._close_oldest()
        self._numbers = numbers[self._oldest - oldest :].tolist()
        everything = last == len(self._lengths) or not self._numbers
        self._ready = self._rows if everything else self._numbers[0]

    def _search(self, samples: list[int], lengths: list[int]) -> np.ndarray:
        """The turn of the row of each short sample, int64."""
        free, open_, free_of, openers = self._free, self._open, self._free_of, self._openers
        span, seq_length, open_rows, turns = self.SPAN, self._seq_length, self._open_rows, []
        for i, n in zip(samples, lengths):
            while openers and openers[0] < i - span:
                self._close_oldest()
            at = bisect_left(free, n)
            if at < len(free):
                rest = free.pop(at) - n
                turn = open_.pop(at)
            else:
                rest = seq_length - n
                turn = self._oldest + len(openers)
                openers.append(i)
                if len(openers) > open_rows:
                    self._close_oldest()
            turns.append(turn)
            if rest:
                at = bisect_left(free, rest)
                free.insert(at, rest)
                open_.insert(at, turn)
                free_of[turn] = rest
            else:
                free_of.pop(turn, None)
        return np.array(turns, dtype=np.int64)

    def _close_oldest(self) -> None:
        self._openers.popleft()
        rest = self._free_of.pop(self._oldest, None)
        if rest is not None:
            at = self._open.index(self._oldest, bisect_left(self._free, rest))
            del self._free[at], self._open[at]
        self._oldest += 1


def pack(lengths: np.ndarray, seq_length: int, open_rows: int = OPEN_ROWS) -> Packing:
    """All rows at once; see Packer. Every sample is placed exactly once."""
    return Packer(lengths, seq_length, open_rows).take_all()
