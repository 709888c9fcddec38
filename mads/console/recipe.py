"""What a selection says of a round: how agents learn, what a decision is held to, how it is made; the protocol of strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from mads.agents.base import Agent
from mads.agents.columns import token_shares
from mads.agents.rules import LearningRule
from mads.console.collaborate import Collaboration
from mads.console.column import Band, ColumnScore
from mads.console.order import Order
from mads.reward.probes import ProbePlan


@dataclass(frozen=True)
class Learning:
    """What a selection with agents adds to one without: probes, the agents' rule, and how theta follows.

    attribution: "joint": each agent that sees one attribute learns from the rewards less the others' effects, on a scale of
        differences between labels (mads.console.attribute_rewards); "marginal": all learn from the rewards as they are
    signal: what is measured of the probes: "reward", "loss", or "reference_loss", which is "loss" and the references' losses
    own_agents: makes the agents of a selection that brings its own; None: the run's configuration lists them
    """

    probes: ProbePlan
    rule: LearningRule
    collaboration: Collaboration
    attribution: str = "marginal"
    signal: str = "reward"
    own_agents: Callable[[], list[Agent]] | None = None

    def __post_init__(self):
        if self.attribution not in ("joint", "marginal"):
            raise ValueError(f"selection.attribution={self.attribution!r} is neither joint nor marginal")


@dataclass(frozen=True)
class Limits:
    """What every selection may be held to.

    exchange: "gather" (everything meets on rank 0), "threshold" (only counts and winners travel), "auto" (by the pool's size)
    unit: "sample", or "shard": whole shards
    max_uses: samples that were used so often are not chosen again
    bounds: attribute -> label -> (least, greatest) share of a decision's tokens; or attribute -> k: each of its labels holds at
        least k times its share of the pool's tokens; at most one attribute
    """

    exchange: str = "auto"
    unit: str = "sample"
    max_uses: int | None = None
    bounds: Mapping[str, Mapping[str, Sequence[float]] | float] = field(default_factory=dict)

    def __post_init__(self):
        if self.exchange not in ("auto", "gather", "threshold") or self.unit not in ("sample", "shard"):
            raise ValueError(
                f"selection.exchange={self.exchange!r} must be auto, gather or threshold, selection.unit={self.unit!r} sample or "
                "shard"
            )
        if len(self.bounds) > 1 or (self.bounds and self.unit == "shard"):
            raise ValueError(
                f"selection.bounds hold for one attribute, got {list(self.bounds)}, and not for whole shards (unit={self.unit})"
            )

    def over(self, pool: Any) -> Limits:
        """These limits with parts of natural shares as shares. Reads the pool if there are any."""
        least = {}
        for attribute, part in self.bounds.items():
            if not isinstance(part, Mapping):
                natural = zip(pool.labels(attribute), token_shares(pool, attribute).tolist())
                least[attribute] = {label: (part * share, 1.0) for label, share in natural}
        return replace(self, bounds={**self.bounds, **least}) if least else self


@dataclass(frozen=True)
class Tilt:
    """Shares that follow the label agents: of the joint cells c of their labels, with n_c a cell's tokens,

    share_c = (1 - floor) n_c exp(S_c / temperature) / sum + floor n_c / sum,   S_c = sum over label agents of theta_A w_A
    """

    temperature: float
    floor: float


@dataclass(frozen=True)
class Recipe:
    """How one round is decided: the order, and the attributes over whose joint labels it is stratified (none: not at all).

    shares: "uniform": every cell that the pool holds gets the same tokens; "natural": its share of the pool's tokens; or float64
        [cells], in the order of the joint codes (the first attribute varies slowest), scaled to sum 1; or label -> share of a
        single attribute, where labels that are not named get 0; or a Tilt of the natural ones by the label agents, whose
        attributes are then the strata
    score: what a scored order goes by; None: S of the agents (Eq. 6)
    band: only samples inside of it; it goes together with bounds, not with strata or whole shards
    """

    order: Order
    strata: Sequence[str] = ()
    shares: str | np.ndarray | Mapping[str, float] | Tilt = "natural"
    score: ColumnScore | None = None
    band: Band | None = None


class Strategy(Protocol):
    """A selection: whether a round needs rewards, and which samples it takes."""

    name: str
    learning: Learning | None  # None: no agents
    limits: Limits

    def needs_rewards(self, round_: int) -> bool:
        """Whether the round begins with a reward pass; only then are agents taught and the pool scored."""

    def recipe(self, scored: bool, agents: Sequence[Agent]) -> Recipe:
        """scored: whether the round has scores; agents: the console's, as they are after learning from the round's rewards."""
