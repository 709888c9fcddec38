"""The selections that a user can name: what each needs from a round, and how it decides.

A strategy holds settings and no state. It is built from the selection's config (mads.config.schema), read by attribute only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mads.agents.base import Agent
from mads.agents.continuous import ContinuousAgent
from mads.agents.label import LabelAgent
from mads.agents.rules import MadsRule, MirrorRule, PaperRule
from mads.console.collaborate import build_collaboration
from mads.console.mixing import MIXERS, build_mixing
from mads.console.order import GumbelOrder, HashOrder, RandomOrder, TopKOrder, scored_order
from mads.console.recipe import Learning, Limits, Recipe, Strategy, Tilt
from mads.console.static import build_static
from mads.reward.probes import PerAgentProbes, SharedProbes

SELECTORS = ("auto", "shares", "gumbel", "top_k", "proportional")
UPDATES = {"exponentiated": MirrorRule, "mean": MadsRule}


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
    """Warm-up on the pool's own mix, held exactly over the joint cells of all agents' labels, or by priors; then by what the
    agents say.

    selector: "shares": the joint cells of the label agents' labels get shares (Tilt), and inside a cell samples are drawn in
        proportion to the exponential of what the other agents say; "gumbel": samples are drawn in proportion to exp(S) over the
        whole pool, those with fewer uses first (Gumbel top-k); "top_k", "proportional": the whole pool by S in another
        way (mads.console.order.scored_order); "auto": shares, and gumbel with bounds, for whole shards and where a curve has
        a prior, which ranks samples wherever they lie
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
        to tilt, and "shares" is "gumbel"; "auto" is that too where a curve has a prior. Agents with a prior are heard in the
        warm-up."""
        if not scored and not any(isinstance(agent, LabelAgent | ContinuousAgent) and agent.prior for agent in agents):
            if not self._free:
                return Recipe(RandomOrder())
            return Recipe(HashOrder(), tuple(dict.fromkeys(agent.attribute for agent in agents)))
        temperature = self.temperature / len(agents)
        labelled = [agent for agent in agents if is_label_agent(agent)]
        if self.selector not in ("auto", "shares"):
            return Recipe(scored_order(self.selector, temperature))
        ranked = any(isinstance(agent, ContinuousAgent) and agent.prior for agent in agents)
        if not self._free or not labelled or (ranked and self.selector == "auto"):
            return Recipe(GumbelOrder(temperature))
        order = HashOrder() if len(labelled) == len(agents) else GumbelOrder(temperature)
        return Recipe(order, tuple(dict.fromkeys(a.attribute for a in labelled)), Tilt(temperature, self.share_floor))


def is_label_agent(agent: Agent) -> bool:
    """Whether the agent's score is a table of one weight per label of its attribute."""
    return getattr(type(agent), "score", None) is LabelAgent.score


def sees_one_attribute(agent: Agent) -> bool:
    """Whether the agent's score follows from one attribute, by label or by value, so that its part of a reward can be told from
    the others' by that attribute's labels."""
    return is_label_agent(agent) or isinstance(agent, ContinuousAgent)


def build_strategy(config: Any) -> Strategy:
    """The strategy of a selection config, chosen by `config.name`.

    Raises:
        ValueError: for a name that is not known, or settings out of range.
    """
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
