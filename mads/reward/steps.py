"""What rewards that take real optimizer steps share: the steps' batches, references drawn step by step, losses, costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mads import noise
from mads.data.batch import IGNORE, PackedBatch
from mads.eval.losses import FixedBatches, spread
from mads.reward.reference import ReferenceTask
from mads.train.interface import Rehearsal, RewardModel


@dataclass(frozen=True)
class RewardContext:
    """What every kind of reward needs of a run.

    references: the reference tasks, weighted equally
    rows: packed rows of one forward
    flops_per_token: of training, forward and backward
    """

    model: RewardModel
    references: Sequence[ReferenceTask]
    topology: object
    seq_length: int
    seed: int
    rows: int
    flops_per_token: int

    def losses(self, batches: FixedBatches) -> np.ndarray:
        """Sum of each sample's token losses under the model as it is, float64 [samples]; equal on every rank."""
        return spread(batches, self.model.sample_losses, self.topology)

    def batches(self, samples: Sequence[np.ndarray]) -> FixedBatches:
        return FixedBatches(samples, self.seq_length, self.rows)

    def forward_flops(self, tokens: float) -> float:
        """A third of training's: backward takes two."""
        return self.flops_per_token * tokens / 3

    def step(self, rehearsal: Rehearsal, samples: Sequence[np.ndarray], rate: float) -> None:
        """One optimizer step on given samples, spread over the replicas as every batch of fixed composition is."""
        batches = self.batches(samples)
        share = batches.share_of(self.topology.coordinate("dp"), self.topology.size("dp"))
        mine = [batches.batch(i)[0] if i is not None else _without_targets(batches.batch(0)[0]) for i in share]
        rehearsal.step(mine, int(batches.targets.sum()), rate)


def _without_targets(batch: PackedBatch) -> PackedBatch:
    return replace(batch, labels=batch.labels.new_full(batch.labels.shape, IGNORE))


def tokens_of(samples: Sequence[np.ndarray]) -> int:
    """Tokens of all samples together."""
    return sum(len(s) for s in samples)


def take(samples: Sequence[np.ndarray], order: Sequence[int], start: int, tokens: int) -> tuple[list[int], int]:
    """(places of the next samples of a cyclic order that hold `tokens`, at least one; where the next ones begin)."""
    chosen, held = [], 0
    while not chosen or held + len(samples[order[start % len(order)]]) <= tokens:
        if len(chosen) == len(order):  # all of them, and still short: a smaller step
            break
        chosen.append(order[start % len(order)])
        held += len(samples[chosen[-1]])
        start += 1
    return chosen, start


class ReferenceBatches:
    """The direction part of the reference tasks in batches of about `tokens` tokens, a task as many as another, in an order drawn
    by hash for each round; one batch has no example of another until a task's examples are used up."""

    def __init__(self, references: Sequence[ReferenceTask], tokens: int, seed: int, round_: int):
        self._tasks, self._tokens = [], max(1, tokens // max(1, len(references)))
        for task in references:
            windows = [window for example in task.parts["direction"] for window in example]
            keys = noise.hash64(seed, f"reference/steps/{task.name}", round_, np.arange(len(windows)))
            self._tasks.append((windows, np.argsort(keys, kind="stable").tolist()))
        self._next = [0] * len(self._tasks)

    def __next__(self) -> list[np.ndarray]:
        batch: list[np.ndarray] = []
        for i, (windows, order) in enumerate(self._tasks):
            chosen, self._next[i] = take(windows, order, self._next[i], self._tokens)
            batch += [windows[j] for j in chosen]
        return batch


class ReferenceLoss:
    """Equal-weight mean over tasks of the token means of `examples` examples, of one part; the same ones within a round."""

    def __init__(self, context: RewardContext, part: str, examples: int, round_: int):
        self._context, self._parts, samples = context, [], []
        for task in context.references:
            windows = task.windows(part, examples, context.seed, round_)
            self._parts.append(slice(len(samples), len(samples) + len(windows)))
            samples += windows
        self._batches = context.batches(samples)
        self.tokens = tokens_of(samples)

    def __call__(self) -> float:
        losses, targets = self._context.losses(self._batches), self._batches.targets
        return float(np.mean([losses[part].sum() / targets[part].sum() for part in self._parts]))
