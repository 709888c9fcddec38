"""Losses of samples under the current model, for selections that ask for them in the place of rewards: forward passes only."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from mads.eval.losses import FixedBatches, spread
from mads.reward.probes import Probes, RoundRewards
from mads.reward.reference import ReferenceTask
from mads.train.interface import RewardModel


class LossSignal:
    """Token-mean loss of each probe, in nats, and of the references' direction part if there are any. Stands where
    mads.reward.influence.Rewarder stands; all ranks call it together and get the same result.

    Args:
        model: the model under training, through mads.train.interface.
        references: the tasks to measure beside the probes; none for signal="loss".
        examples: of each task, the same ones in every round: what counts is by how much their loss changes.
        rows: packed rows of one forward.
    """

    def __init__(
        self,
        model: RewardModel,
        references: Sequence[ReferenceTask],
        topology,
        seq_length: int,
        seed: int,
        examples: int,
        rows: int,
    ):
        self._model, self._topology, self._seq_length, self._rows = model, topology, seq_length, rows
        self._tasks = {task.name: task.windows("direction", examples, seed) for task in references}
        self.mode = "reference_loss" if references else "loss"

    def losses(self, samples: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(sum of token losses, targets) of token arrays, float64 and int64 [n], in their order."""
        batches = FixedBatches(samples, self._seq_length, self._rows)
        return spread(batches, self._model.sample_losses, self._topology), batches.targets

    def __call__(self, probes: Probes, samples: Sequence[np.ndarray], round_: int) -> RoundRewards:
        """Losses of the round's probes, whose tokens are `samples`. The model is left bit for bit as it was."""
        started, references = time.perf_counter(), {}
        with self._model.undisturbed():
            if self._tasks:
                sums, targets = self.losses([window for windows in self._tasks.values() for window in windows])
                ends = np.cumsum([len(windows) for windows in self._tasks.values()])
                for name, start, end in zip(self._tasks, [0, *ends], ends):
                    references[name] = float(sums[start:end].sum() / targets[start:end].sum())
            between = time.perf_counter()
            sums, targets = self.losses(samples)
        seconds = {"reference": between - started, "probes": time.perf_counter() - between}
        diagnostics = {"mode": self.mode, **{f"loss on {name}": value for name, value in references.items()}}
        return RoundRewards(probes, sums / np.maximum(1, targets), targets, diagnostics, seconds, references)
