"""The rewards that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mads.reward.displacement import DisplacementRewarder
from mads.reward.group import GroupRewarder
from mads.reward.influence import Rewarder
from mads.reward.losses import LossSignal
from mads.reward.probes import Probes, RoundRewards
from mads.reward.steps import RewardContext

RoundRewarder = Callable[[Probes, Sequence[np.ndarray], int, float], RoundRewards]  # probes, their tokens, round, learning rate


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
