"""A score that is a column of the pool, and a band of its values: what a selection needs that takes no rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mads.agents.columns import token_quantiles
from mads.console.decide import Bounds
from mads.console.slices import CallScore, Cells, Column, Window

INSIDE, OUTSIDE = "inside the band", "outside of the band"


@dataclass(frozen=True)
class ColumnScore:
    """S(x) is the value of a numeric attribute, or its logarithm, with either sign.

    attribute: a column with values; descending: the greatest value has the greatest S; logarithm: S = log(value)
    """

    attribute: str
    descending: bool = True
    logarithm: bool = False

    def of(self, pool: Any, start: int, stop: int) -> CallScore:
        """The score of the samples `start` to `stop` of a pool; NaN or infinite where the value has no logarithm."""
        values = Window(pool.values(self.attribute), start, stop)
        return CallScore(self.attribute, lambda where: self.score(values[where]))

    def score(self, values: np.ndarray) -> np.ndarray:
        """float64 [n] of values [n]."""
        score = np.array(values, dtype=np.float64)
        if self.logarithm:
            with np.errstate(divide="ignore", invalid="ignore"):  # counted as a score that is not finite, and named
                np.log(score, out=score)
        return score if self.descending else np.negative(score, out=score)


@dataclass
class Band:
    """The samples whose value lies between two quantiles of the pool's tokens, both ends included.

    The ends are found once for a pool (mads.agents.columns.token_quantiles, the same on every rank). A pool that has grown is
    another pool: its ends are found anew, so that a decision remains a function of the pool alone.

    attribute: a column with values; low, high: parts of the tokens, 0 <= low < high <= 1
    """

    attribute: str
    low: float
    high: float
    _found: tuple[Any, float, float] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"selection.band=[{self.low}, {self.high}] must be two parts of the tokens, 0 <= low < high <= 1")

    def ends(self, pool: Any) -> tuple[float, float]:
        """The least and the greatest value inside. Raises ValueError for a pool without a finite value."""
        if self._found is None or self._found[0] is not pool:
            low, high = token_quantiles(pool, self.attribute, [self.low, self.high]).tolist()
            self._found = (pool, low if self.low > 0 else -np.inf, high if self.high < 1 else np.inf)
        return self._found[1:]

    def bounded(self, bounds: Bounds | None) -> Bounds:
        """The bounds, with one more label that may hold nothing: the samples outside. None: no bounds beside the band."""
        bounds = bounds or Bounds([INSIDE], np.zeros(1), np.ones(1))
        return Bounds([*bounds.labels, OUTSIDE], np.append(bounds.least, 0.0), np.append(bounds.most, 0.0))

    def cells(self, pool: Any, start: int, stop: int, inner: Cells | None, labels: int) -> BandCells:
        """Cells of `bounded(...)` of the samples `start` to `stop`. inner: of the bounds; labels: how many those have."""
        return BandCells(Window(pool.values(self.attribute), start, stop), self.ends(pool), inner, labels)


@dataclass(frozen=True)
class BandCells:
    """Each sample's label, or the one behind the last for samples outside of the band."""

    values: Column
    ends: Sequence[float]
    inner: Cells | None
    labels: int

    def __getitem__(self, where: slice) -> np.ndarray:
        """int64 [n]."""
        values = np.asarray(self.values[where])
        cells = np.zeros(len(values), dtype=np.int64) if self.inner is None else self.inner[where]
        inside = (values >= self.ends[0]) & (values <= self.ends[1])
        return np.where(inside, cells, self.labels)
