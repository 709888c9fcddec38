"""A rank's slice of a pool that is read a piece at a time: its columns, its labels, and the scores of a piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mads.console.decide import combine

MOST_CELLS = 1 << 16  # of a table of sums over the label columns that it replaces


class Column(Protocol):
    """One value per sample: a NumPy array, a memory map, a column of a pool, a `Window` of one, or a `FileColumn`."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice) -> np.ndarray: ...


class FileColumn:
    """A column of raw values in a file, read a piece at a time. Unlike a memory map's, its pages never count as this process's.

    Raises:
        ValueError: if the file's size is not a whole number of values.
    """

    def __init__(self, path: Path, dtype):
        self.path, self.dtype = Path(path), np.dtype(dtype)
        size = self.path.stat().st_size
        if size % self.dtype.itemsize:
            raise ValueError(f"{self.path} has {size} bytes, which is no whole number of {self.dtype} values; it is cut off")
        self._count = size // self.dtype.itemsize

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, step = where.indices(self._count)
        if step != 1:
            raise ValueError(f"a column is read in contiguous pieces, not with step {step}")
        offset = start * self.dtype.itemsize
        return np.fromfile(self.path, dtype=self.dtype, count=max(0, stop - start), offset=offset)


@dataclass(frozen=True)
class Window:
    """Samples `start` to `stop` of a longer column."""

    column: Column
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, _ = where.indices(len(self))
        return self.column[self.start + start : self.start + max(start, stop)]


@dataclass(frozen=True)
class PoolSlice:
    """This rank's samples, in pool order.

    ids: int64, strictly ascending; lengths: tokens, at least 1; uses: 0 to 65535, how often each sample was trained on
    """

    ids: Column
    lengths: Column
    uses: Column

    def __post_init__(self):
        if not len(self.ids) == len(self.lengths) == len(self.uses):
            raise ValueError(
                f"{len(self.ids)} ids, {len(self.lengths)} lengths and {len(self.uses)} use counts must be equally many"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def pieces(self, size: int) -> Iterator[slice]:
        """Consecutive slices of `size` samples; the last may be shorter."""
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))


@dataclass(frozen=True)
class Cells:
    """The joint cell of one or several label columns. sizes: their numbers of labels."""

    names: Sequence[str]
    columns: Sequence[Column]
    sizes: Sequence[int]

    def __getitem__(self, where: slice) -> np.ndarray:
        """int64 [n]. Raises ValueError for a code that has no label."""
        cell = np.zeros(where.stop - where.start, dtype=np.int64)
        for name, column, size in zip(self.names, self.columns, self.sizes):
            codes = column[where]
            if codes.max(initial=0) >= size:
                raise ValueError(f"attribute {name!r} has code {codes.max()}, but only {size} labels; label the data again")
            cell *= size
            cell += codes
        return cell


@dataclass(frozen=True)
class LabelScore:
    """An agent that gives every sample its label's weight. codes: unsigned integers; weights: float64 [L], finite."""

    name: str
    codes: Column
    weights: np.ndarray

    def __post_init__(self):
        if len(self.weights) == 0 or not np.isfinite(self.weights).all():
            raise ValueError(f"agent {self.name!r} needs a finite weight for every label, got {np.asarray(self.weights)}")

    def score(self, where: slice) -> np.ndarray:
        """float64 [n]; NaN for a code without a weight."""
        codes = self.codes[where]
        scores = np.asarray(self.weights, dtype=np.float64).take(codes, mode="clip")
        if codes.max(initial=0) >= len(self.weights):
            scores[codes >= len(self.weights)] = np.nan
        return scores


@dataclass(frozen=True)
class CallScore:
    """An agent whose scores are computed by a function of the piece. call: slice -> float64 [n]."""

    name: str
    call: Callable[[slice], np.ndarray]

    def score(self, where: slice) -> np.ndarray:
        """float64 [n]. Raises ValueError if the function gives something else."""
        scores = self.call(where)
        if scores.shape != (where.stop - where.start,) or scores.dtype != np.float64:
            raise ValueError(
                f"agent {self.name!r} gave {scores.dtype} {scores.shape} for {where.stop - where.start} samples; "
                "scores are float64, one per sample"
            )
        return scores


class SliceScores:
    """S of Eq. 6 for any piece of a slice, bit for bit what `combine` gives on the agents' scores.

    The first agents, as long as they are label agents with at most 65536 joint cells, are one look-up in a table of their sums.
    """

    def __init__(self, agents: Sequence[LabelScore | CallScore], theta: np.ndarray):
        if len(agents) == 0 or len(agents) != len(theta):
            raise ValueError(f"theta has {len(theta)} weights for {len(agents)} agents")
        self.agents, self.theta = tuple(agents), np.asarray(theta, dtype=np.float64)
        sizes: list[int] = []
        for agent in agents:
            if not isinstance(agent, LabelScore) or np.prod([*sizes, len(agent.weights)], dtype=np.float64) > MOST_CELLS:
                break
            sizes.append(len(agent.weights))
        self._sizes = sizes
        if sizes:
            cells = np.unravel_index(np.arange(np.prod(sizes)), sizes)
            self._table = combine([a.weights[c] for a, c in zip(agents, cells)], self.theta[: len(sizes)])

    def total(self, where: slice) -> np.ndarray:
        """float64 [n]; not to be used where `checked_total` counts anything wrong."""
        return self.checked_total(where)[0]

    def checked_total(self, where: slice) -> tuple[np.ndarray, list[int]]:
        """(S, float64 [n]; per agent, samples whose score is NaN or infinite)."""
        fused = len(self._sizes)
        wrong, total = [0] * fused, None
        if fused:
            codes = [agent.codes[where] for agent in self.agents[:fused]]
            wrong = [0 if c.max(initial=0) < size else int((c >= size).sum()) for c, size in zip(codes, self._sizes)]
            total = self._look_up(codes)
        for agent, weight in zip(self.agents[fused:], self.theta[fused:]):
            scores = agent.score(where)
            wrong.append(int(len(scores) - np.isfinite(scores).sum()))
            total = combine([scores], [weight], total)
        return total, wrong

    def _look_up(self, codes: list[np.ndarray]) -> np.ndarray:
        cell = codes[0].astype(np.uint16)
        for column, size in zip(codes[1:], self._sizes[1:]):
            cell *= np.uint16(size)
            cell += column.astype(np.uint16, copy=False)
        return self._table.take(cell, mode="clip")
