"""The selections that a user can name: what each needs from a round, and how it decides.

A strategy holds settings and no state. It is built from the selection's config (mads.config.schema), read by attribute only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mads.agents.base import Agent
from mads.agents.rules import LearningRule, MadsRule, PaperRule
from mads.console.collaborate import AdditiveCollaboration, Collaboration, MultiplicativeCollaboration
from mads.console.order import GumbelOrder, HashOrder, Order, RandomOrder, TopKOrder
from mads.reward.probes import PerAgentProbes, ProbePlan, SharedProbes


@dataclass(frozen=True)
class Learning:
    """What a selection with agents adds to one without: probes, the agents' rule, and how theta follows.

    signal: what is measured of the probes: "reward", "loss", or "reference_loss", which is "loss" and the references' losses
    own_agents: makes the agents of a selection that brings its own; None: the run's configuration lists them
    """

    probes: ProbePlan
    rule: LearningRule
    collaboration: Collaboration
    signal: str = "reward"
    own_agents: Callable[[], list[Agent]] | None = None


@dataclass(frozen=True)
class Limits:
    """What every selection may be held to.

    exchange: "gather" (everything meets on rank 0), "threshold" (only counts and winners travel), "auto" (by the pool's size)
    unit: "sample", or "shard": whole shards
    max_uses: samples that were used so often are not chosen again
    bounds: attribute -> label -> (least, greatest) share of a decision's tokens; at most one attribute
    """

    exchange: str = "auto"
    unit: str = "sample"
    max_uses: int | None = None
    bounds: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

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


@dataclass(frozen=True)
class Recipe:
    """How one round is decided: the order, and the attributes over whose joint labels it is stratified (none: not at all).

    shares: "uniform": every cell that the pool holds gets the same tokens; "natural": its share of the pool's tokens; or float64
        [cells], in the order of the joint codes (the first attribute varies slowest), scaled to sum 1
    """

    order: Order
    strata: Sequence[str] = ()
    shares: str | np.ndarray = "natural"


class Strategy(Protocol):
    """A selection: whether a round needs rewards, and which samples it takes."""

    name: str
    learning: Learning | None  # None: no agents
    limits: Limits

    def needs_rewards(self, round_: int) -> bool:
        """Whether the round begins with a reward pass; only then are agents taught and the pool scored."""

    def recipe(self, scored: bool, agents: Sequence[Agent]) -> Recipe:
        """scored: whether the round has scores; agents: the console's, as they are after learning from the round's rewards."""


@dataclass(frozen=True)
class RandomStrategy:
    """A random subset every round: the control."""

    limits: Limits = Limits()
    name: str = "random"
    learning: Learning | None = None

    def needs_rewards(self, round_: int) -> bool:
        return False

    def recipe(self, scored: bool, agents: Sequence[Agent]) -> Recipe:
        return Recipe(RandomOrder())


@dataclass(frozen=True)
class StratifiedStrategy:
    """Fixed shares of one attribute's labels, uniform or natural."""

    attribute: str
    shares: str
    limits: Limits = Limits()
    name: str = "stratified"
    learning: Learning | None = None

    def __post_init__(self):
        if self.shares not in ("uniform", "natural"):
            raise ValueError(f"selection.shares={self.shares!r} is neither 'uniform' nor 'natural'")
        if self.limits.bounds or self.limits.unit == "shard":
            raise ValueError(
                "selection=stratified fixes the shares of single samples' labels: it has no bounds and no unit=shard"
            )

    def needs_rewards(self, round_: int) -> bool:
        return False

    def recipe(self, scored: bool, agents: Sequence[Agent]) -> Recipe:
        return Recipe(HashOrder(), (self.attribute,), self.shares)


@dataclass(frozen=True)
class PaperStrategy:
    """A random subset in round 0, then top-k by S (Eq. 4-8)."""

    learning: Learning
    use_decay: float
    limits: Limits = Limits()
    name: str = "paper"

    def needs_rewards(self, round_: int) -> bool:
        return round_ > 0

    def recipe(self, scored: bool, agents: Sequence[Agent]) -> Recipe:
        return Recipe(TopKOrder(self.use_decay) if scored else RandomOrder())


@dataclass(frozen=True)
class MadsStrategy:
    """Warm-up on the pool's own mix, held exactly over the joint cells of all agents' labels; then Gumbel top-k without reuse."""

    learning: Learning
    temperature: float
    warmup_rounds: int
    limits: Limits = Limits()
    name: str = "mads"

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"selection.temperature={self.temperature} must be positive; small values approach top-k")

    def needs_rewards(self, round_: int) -> bool:
        return round_ >= self.warmup_rounds

    def recipe(self, scored: bool, agents: Sequence[Agent]) -> Recipe:
        """Bounds and whole shards leave no room for strata: there the warm-up is random."""
        if scored:
            return Recipe(GumbelOrder(self.temperature))
        if self.limits.bounds or self.limits.unit == "shard":
            return Recipe(RandomOrder())
        return Recipe(HashOrder(), tuple(dict.fromkeys(agent.attribute for agent in agents)))


def build_strategy(config: Any) -> Strategy:
    """The strategy of a selection config, chosen by `config.name`.

    Raises:
        ValueError: for a name that is not known, or settings out of range.
    """
    from mads.console.mixing import MIXERS, build_mixing  # it takes its types from here

    if config.name not in ("random", "stratified", "paper", "mads", *MIXERS):
        raise ValueError(f"selection {config.name!r} is not one of random, stratified, paper, mads, {', '.join(MIXERS)}")
    limits = Limits(config.exchange, config.unit, config.max_uses, config.bounds)
    if config.name in MIXERS:
        return build_mixing(config, limits)
    if config.name == "random":
        return RandomStrategy(limits)
    if config.name == "stratified":
        return StratifiedStrategy(config.attribute, config.shares, limits)
    if config.name == "paper":
        learning = Learning(
            PerAgentProbes(config.probes_per_agent), PaperRule(config.agent_rate), AdditiveCollaboration(config.theta_rate)
        )
        return PaperStrategy(learning, config.use_decay, limits)
    learning = Learning(
        SharedProbes(config.probes),
        MadsRule(config.agent_rate),
        MultiplicativeCollaboration(config.theta_rate, config.theta_floor),
    )
    return MadsStrategy(learning, config.temperature, config.warmup_rounds, limits)
