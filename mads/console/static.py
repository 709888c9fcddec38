"""Selections without rewards: what a user knows about the data before training decides, and stays as it is.

They are the baselines of online selection: a classifier's best documents (FineWeb-Edu, arXiv 2406.17557; DCLM, 2406.11794),
quality with a temperature (QuRating, 2402.09739), a perplexity filter (Marion et al., 2309.04564), importance resampling
(DSIR, 2302.03169) and mixes by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mads.agents.base import Agent
from mads.console.column import Band, ColumnScore
from mads.console.order import GumbelOrder, HashOrder, Order, RandomOrder, TopKOrder
from mads.console.recipe import Learning, Limits, Recipe

SELECTORS = ("top_k", "gumbel", "proportional", "random")


@dataclass(frozen=True)
class ColumnStrategy:
    """One numeric attribute decides, fewer uses first.

    selector: top_k (the best); gumbel (without replacement in proportion to exp(value / temperature)); proportional (to the
        value, which must be positive); random (of a band)
    descending: great values are good; False: small ones, exp(-value / temperature), 1 / value
    band: quantiles of the pool's tokens, [] for none; samples outside of it are never chosen
    """

    column: str
    selector: str = "top_k"
    descending: bool = True
    temperature: float | None = None
    band: Sequence[float] = ()
    limits: Limits = Limits()
    name: str = "column"
    learning: Learning | None = None

    def __post_init__(self):
        if self.selector not in SELECTORS:
            raise ValueError(f"selection.selector={self.selector!r} is not one of {', '.join(SELECTORS)}")
        if (self.selector == "gumbel") != (self.temperature is not None):
            raise ValueError(f"selector=gumbel and no other has a temperature; got {self.selector}, {self.temperature}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"selection.temperature={self.temperature} must be positive; small values approach top_k")
        if self.band and self.limits.unit == "shard":
            raise ValueError("selection.band holds for single samples' values, not for whole shards (unit=shard)")
        if self.band:
            Band(self.column, *self.band)

    @cached_property
    def _recipe(self) -> Recipe:
        """The same object every round: its band remembers the ends that it found."""
        return Recipe(self._order(), score=self._score(), band=Band(self.column, *self.band) if self.band else None)

    def _score(self) -> ColumnScore | None:
        if self.selector == "random":
            return None
        return ColumnScore(self.column, self.descending, logarithm=self.selector == "proportional")

    def _order(self) -> Order:
        """In proportion to the value is Gumbel noise on its logarithm (Vieira 2014)."""
        if self.selector == "random":
            return RandomOrder()
        if self.selector == "top_k":
            return TopKOrder(0.0, fewer_uses_first=True)
        return GumbelOrder(self.temperature or 1.0)

    def needs_rewards(self, round_: int) -> bool:
        return False

    def recipe(self, scored: bool, agents: Sequence[Agent]) -> Recipe:
        return self._recipe


@dataclass(frozen=True)
class MixStrategy:
    """Shares of one attribute's labels by hand, random inside a label. shares: label -> share, scaled to sum 1; others get 0."""

    attribute: str
    shares: Mapping[str, float]
    limits: Limits = Limits()
    name: str = "mix"
    learning: Learning | None = None

    def __post_init__(self):
        values = np.array(list(self.shares.values()), dtype=np.float64)
        if not np.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
            raise ValueError(f"selection.shares={dict(self.shares)} must be numbers that are not negative, and not all 0")
        if self.limits.bounds or self.limits.unit == "shard":
            raise ValueError("selection=mix fixes the shares of single samples' labels: it has no bounds and no unit=shard")

    def needs_rewards(self, round_: int) -> bool:
        return False

    def recipe(self, scored: bool, agents: Sequence[Agent]) -> Recipe:
        return Recipe(HashOrder(), (self.attribute,), self.shares)


def build_static(config: Any, limits: Limits) -> ColumnStrategy | MixStrategy:
    """The strategy of selection=column or selection=mix.

    Raises:
        ValueError: for settings out of range.
    """
    if config.name == "mix":
        return MixStrategy(config.attribute, dict(config.shares), limits)
    band = tuple(config.band)
    return ColumnStrategy(config.column, config.selector, config.descending, config.temperature, band, limits)
