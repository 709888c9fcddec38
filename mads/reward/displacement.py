"""Rewards by a finite displacement: how much a few real steps on the references lower each probe's loss.

    r(x) = L(x; theta) - L(x; theta_c),   theta_c: theta after k optimizer steps on reference batches

A first-order reward is the derivative along one direction at one point; this one follows the optimizer over k steps, so it has
their curvature and averages the noise of k batches. By the symmetry of the kernel <grad L(x), P grad L_ref> it also says what
training on x does to the references (CoLoR-Filter, arXiv 2406.10670, with the model under training in the place of its two
models). Adam's first moment is set to zero for these steps: what it holds is the direction of training itself, in which every
sample's loss falls.

Cost: k steps, and two forward passes over the probes, whatever the number of labels.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from mads.reward.probes import Probes, RoundRewards
from mads.reward.steps import ReferenceBatches, RewardContext, tokens_of


class DisplacementRewarder:
    """Called by all ranks together, with the same result on each.

    Args:
        config: a DisplacementRewardConfig.
    """

    mode = "displacement"

    def __init__(self, context: RewardContext, config):
        self._context, self._config = context, config

    def __call__(
        self, probes: Probes, samples: Sequence[np.ndarray], round_: int, rate: float, mix: Sequence[np.ndarray] = ()
    ) -> RoundRewards:
        """Rewards of the round's probes, whose tokens are `samples`. The model is left bit for bit as it was.

        Args:
            rate: learning rate of the training step to come; the steps here take it times `rate_factor`.
            mix: not used.
        """
        context, config = self._context, self._config
        started = time.perf_counter()
        batches = context.batches(samples)
        step_tokens = config.step_rows * context.seq_length
        references, trained = ReferenceBatches(context.references, step_tokens, context.seed, round_), 0
        with context.model.rehearsal() as rehearsal:
            before = context.losses(batches)
            between = time.perf_counter()
            rehearsal.forget_momentum()
            for _ in range(config.steps):
                batch = next(references)
                trained += tokens_of(batch)
                context.step(rehearsal, batch, rate * config.rate_factor)
            stepped = time.perf_counter()
            after = context.losses(batches)
        ended = time.perf_counter()
        rewards = (before - after) / np.maximum(1, batches.targets)
        flops = context.flops_per_token * trained + 2 * context.forward_flops(tokens_of(samples))
        diagnostics = {"mode": self.mode, "steps": config.steps, "step_tokens": trained / config.steps, "flops": flops}
        seconds = {"reference": stepped - between, "probes": ended - started - (stepped - between)}
        return RoundRewards(probes, rewards, batches.targets, diagnostics, seconds)
