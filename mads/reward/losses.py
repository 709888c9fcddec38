"""Losses of samples under the current model, for selections that ask for them in the place of rewards: forward passes only."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from mads.reward.probes import Probes, RoundRewards
from mads.reward.reference import ReferenceTask
from mads.reward.steps import RewardContext, tokens_of


class LossSignal:
    """Token-mean loss of each probe, in nats, and of the references' direction part if there are any. Stands where
    mads.reward.influence.Rewarder stands; all ranks call it together and get the same result.

    Args:
        references: the tasks to measure beside the probes; none for signal="loss".
        examples: of each task, the same ones in every round: what counts is by how much their loss changes.
    """

    def __init__(self, context: RewardContext, references: Sequence[ReferenceTask], examples: int):
        self._context = context
        self._tasks = {task.name: task.windows("direction", examples, context.seed) for task in references}
        self.mode = "reference_loss" if references else "loss"

    def losses(self, samples: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(sum of token losses, targets) of token arrays, float64 and int64 [n], in their order."""
        batches = self._context.batches(samples)
        return self._context.losses(batches), batches.targets

    def __call__(
        self, probes: Probes, samples: Sequence[np.ndarray], round_: int, rate: float = 0.0, mix: Sequence[np.ndarray] = ()
    ) -> RoundRewards:
        """Losses of the round's probes, whose tokens are `samples`. The model is left bit for bit as it was."""
        started, references = time.perf_counter(), {}
        with self._context.model.undisturbed():
            windows = [window for windows in self._tasks.values() for window in windows]
            if windows:
                sums, targets = self.losses(windows)
                ends = np.cumsum([len(windows) for windows in self._tasks.values()])
                for name, start, end in zip(self._tasks, [0, *ends], ends):
                    references[name] = float(sums[start:end].sum() / targets[start:end].sum())
            between = time.perf_counter()
            sums, targets = self.losses(samples)
        seconds = {"reference": between - started, "probes": time.perf_counter() - between}
        flops = self._context.forward_flops(tokens_of(windows) + tokens_of(samples))
        diagnostics = {"mode": self.mode, "flops": flops, **{f"loss on {name}": value for name, value in references.items()}}
        return RoundRewards(probes, sums / np.maximum(1, targets), targets, diagnostics, seconds, references)
