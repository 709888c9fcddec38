"""The selections that a user can name: what each needs from a round, and how it decides.

A strategy holds settings and no state. It is built from the selection's config (mads.config.schema), read by attribute only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from mads.agents.base import Agent
from mads.agents.label import LabelAgent
from mads.agents.rules import LearningRule, MadsRule, MirrorRule, PaperRule
from mads.console.collaborate import Collaboration, build_collaboration
from mads.console.column import Band, ColumnScore
from mads.console.order import GumbelOrder, HashOrder, Order, RandomOrder, TopKOrder, scored_order
from mads.reward.probes import PerAgentProbes, ProbePlan, SharedProbes

SELECTORS = ("auto", "shares", "gumbel", "top_k", "proportional")
UPDATES = {"exponentiated": MirrorRule, "mean": MadsRule}


@dataclass(frozen=True)
class Learning:
    """What a selection with agents adds to one without: probes, the agents' rule, and how theta follows.

    attribution: "joint": each agent learns from the rewards less the other label agents' effects, on a scale of differences
        between labels (mads.console.attribute_rewards); "marginal": all learn from the rewards as they are
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
    """Warm-up on the pool's own mix, held exactly over the joint cells of all agents' labels; then by what the agents say.

    selector: "shares": the joint cells of the label agents' labels get shares (Tilt), and inside a cell samples are drawn in
        proportion to the exponential of what the other agents say; "gumbel": samples are drawn in proportion to exp(S) over the
        whole pool, those with fewer uses first (Gumbel top-k); "top_k", "proportional": the whole pool by S in another
        way (mads.console.order.scored_order); "auto": shares, and gumbel with bounds and for whole shards
    temperature: S, a mean over A agents with weights theta, counts A / temperature times: at 1 and equal trust the agents'
        weights add up as logarithms
    share_floor: part of its natural share that a cell keeps whatever the agents say
    """

    learning: Learning
    temperature: float
    warmup_rounds: int
    limits: Limits = Limits()
    selector: str = "auto"
    share_floor: float = 0.0
    name: str = "mads"

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"selection.temperature={self.temperature} must be positive; small values approach top-k")
        if self.selector not in SELECTORS:
            raise ValueError(f"selection.selector={self.selector!r} is not one of {', '.join(SELECTORS)}")
        if not 0 <= self.share_floor < 1:
            raise ValueError(f"selection.share_floor={self.share_floor} must lie in [0, 1)")
        if self.selector == "shares" and not self._free:
            raise ValueError("selection.selector=shares leaves no room for bounds and unit=shard; use selection.selector=gumbel")

    @property
    def _free(self) -> bool:
        """Whether the limits leave room for strata."""
        return not self.limits.bounds and self.limits.unit == "sample"

    def needs_rewards(self, round_: int) -> bool:
        return round_ >= self.warmup_rounds

    def recipe(self, scored: bool, agents: Sequence[Agent]) -> Recipe:
        """Bounds and whole shards leave no room for strata: there the warm-up is random. Without label agents there are no shares
        to tilt, and "shares" is "gumbel"."""
        if not scored:
            if not self._free:
                return Recipe(RandomOrder())
            return Recipe(HashOrder(), tuple(dict.fromkeys(agent.attribute for agent in agents)))
        temperature = self.temperature / len(agents)
        labelled = [agent for agent in agents if is_label_agent(agent)]
        if self.selector not in ("auto", "shares"):
            return Recipe(scored_order(self.selector, temperature))
        if not self._free or not labelled:
            return Recipe(GumbelOrder(temperature))
        order = HashOrder() if len(labelled) == len(agents) else GumbelOrder(temperature)
        return Recipe(order, tuple(dict.fromkeys(a.attribute for a in labelled)), Tilt(temperature, self.share_floor))


def is_label_agent(agent: Agent) -> bool:
    """Whether the agent's score is a table of one weight per label of its attribute."""
    return getattr(type(agent), "score", None) is LabelAgent.score


def build_strategy(config: Any) -> Strategy:
    """The strategy of a selection config, chosen by `config.name`.

    Raises:
        ValueError: for a name that is not known, or settings out of range.
    """
    from mads.console.mixing import MIXERS, build_mixing  # they are made of the classes above
    from mads.console.static import build_static

    names = ("random", "stratified", "column", "mix", "paper", "mads", *MIXERS)
    if config.name not in names:
        raise ValueError(f"selection {config.name!r} is not one of {', '.join(names)}")
    limits = Limits(config.exchange, config.unit, config.max_uses, config.bounds)
    if config.name in ("column", "mix"):
        return build_static(config, limits)
    if config.name in MIXERS:
        return build_mixing(config, limits)
    if config.name == "random":
        return RandomStrategy(limits)
    if config.name == "stratified":
        return StratifiedStrategy(config.attribute, config.shares, limits)
    if config.name == "paper":
        learning = Learning(PerAgentProbes(config.probes_per_agent), PaperRule(config.agent_rate), build_collaboration(config))
        return PaperStrategy(learning, config.use_decay, limits)
    if config.agent_update not in UPDATES:
        raise ValueError(f"selection.agent_update={config.agent_update!r} is not one of {', '.join(UPDATES)}")
    learning = Learning(
        SharedProbes(config.probes),
        UPDATES[config.agent_update](config.agent_rate),
        build_collaboration(config),
        config.attribution,
    )
    return MadsStrategy(learning, config.temperature, config.warmup_rounds, limits, config.selector, config.share_floor)
