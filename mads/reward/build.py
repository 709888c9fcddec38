"""The rewards that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mads.reward.displacement import DisplacementRewarder
from mads.reward.group import GroupRewarder
from mads.reward.influence import Rewarder
from mads.reward.losses import LossSignal
from mads.reward.probes import Probes, RoundRewards
from mads.reward.steps import RewardContext


class RoundRewarder(Protocol):
    """Rewards of a round; called by all ranks together."""

    def __call__(
        self, probes: Probes, samples: Sequence[np.ndarray], round_: int, rate: float, mix: Sequence[np.ndarray] = ()
    ) -> RoundRewards:
        """samples: the probes' tokens; rate: of the training step to come; mix: tokens of samples of the last round's decision,
        as many as `mix_tokens` of the configuration asks for."""


def mix_tokens(config, seq_length: int) -> int:
    """Tokens of what is being trained on that the rewards of a RewardConfig want beside the probes."""
    return config.get("mix_rows", 0) * config.get("steps", 0) * seq_length


def build_rewarder(context: RewardContext, sizes: dict[str, int], optim, config, signal: str = "reward") -> RoundRewarder:
    """By `signal` (mads.console.strategy.Learning), and rewards by `config.mode`.

    Args:
        sizes: logical number of elements by parameter name.
        optim: an OptimConfig; config: a RewardConfig.
    """
    if signal != "reward":
        return LossSignal(context, context.references if signal == "reference_loss" else [], config.get("reference_examples", 64))

    def one_step(mode: str) -> Rewarder:
        settings = context.seq_length, context.seed, config, mode, context.flops_per_token
        return Rewarder(context.model, context.references, context.topology, sizes, optim.beta2, optim.eps, *settings)

    if config.mode == "displacement":
        return DisplacementRewarder(context, config)
    if config.mode in ("group", "blend"):
        return GroupRewarder(context, config, one_step("auto") if config.mode == "blend" else None)
    return one_step(config.mode)
