"""Online mixing: selections that move the shares of one attribute's labels by losses, and take random samples inside a label.

They are baselines in the same harness: the same rounds, probes, records and checkpoints as the selections with agents. Each has
one agent of its own (mads.agents.mixers), so a configuration lists none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mads.agents.base import Agent
from mads.agents.mixers import AdoAgent, AioliAgent, MixingAgent, OdmAgent
from mads.agents.mixing import LossRule
from mads.console.collaborate import AdditiveCollaboration
from mads.console.order import HashOrder
from mads.console.recipe import Learning, Limits, Recipe
from mads.reward.probes import FixedProbes, ProbePlan, SharedProbes


@dataclass(frozen=True)
class MixingStrategy:
    """Shares of one attribute's labels, held exactly as `StratifiedStrategy` holds them; they follow losses from round 1 on."""

    name: str
    attribute: str
    learning: Learning
    limits: Limits = Limits()

    def __post_init__(self):
        if self.limits.bounds or self.limits.unit == "shard":
            raise ValueError(
                f"selection={self.name} sets the shares of single samples' labels: it has no bounds and no unit=shard"
            )

    def needs_rewards(self, round_: int) -> bool:
        return round_ > 0

    def recipe(self, scored: bool, agents: Sequence[Agent]) -> Recipe:
        [agent] = agents
        return Recipe(HashOrder(), (self.attribute,), agent.mix)


def _odm(c: Any) -> tuple[ProbePlan, str, Callable[[], MixingAgent]]:
    return SharedProbes(c.probes), "loss", lambda: OdmAgent(c.attribute, c.interval, c.smoothing)


def _ado(c: Any) -> tuple[ProbePlan, str, Callable[[], MixingAgent]]:
    def agent() -> MixingAgent:
        return AdoAgent(
            c.attribute, c.interval, c.credit_rate, c.preference_rate, c.credit_power, c.floor, c.law_rounds
        )  # fmt: skip

    return FixedProbes(c.probes), "loss", agent


def _aioli(c: Any) -> tuple[ProbePlan, str, Callable[[], MixingAgent]]:
    def agent() -> MixingAgent:
        return AioliAgent(c.attribute, c.shares, c.deviation, c.mix_rate, c.decay, c.ridge, c.floor)

    return SharedProbes(c.probes), "reference_loss", agent


MIXERS = {"odm": _odm, "ado": _ado, "aioli": _aioli}


def build_mixing(config: Any, limits: Limits) -> MixingStrategy:
    """The strategy of a selection config whose name is in MIXERS."""
    probes, signal, agent = MIXERS[config.name](config)
    learning = Learning(probes, LossRule(), AdditiveCollaboration(0.0), signal=signal, own_agents=lambda: [agent()])
    return MixingStrategy(config.name, config.attribute, learning, limits)
