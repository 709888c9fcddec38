"""Rewards of samples: r(x) = <v, grad L(x)> = d/de L(x; theta + e v) at e = 0, with L(x) the sample's mean token loss.

The sign: v points along +P grad L_ref, so a step of training on x, -lr P grad L(x), changes the reference loss by -lr r(x).
A positive reward therefore means that training on x lowers the reference loss.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from mads.eval.losses import FixedBatches, spread
from mads.reward.direction import Direction, make_direction, preconditioned
from mads.reward.probes import Probes, RoundRewards
from mads.reward.reference import ReferenceTask
from mads.train.interface import RewardModel

CHECKED = 16  # probes whose finite difference is taken with half the step too
MOST_ERROR = 0.1  # relative difference of the two from which the round's record has a note


def resolve_mode(mode: str, dtype: torch.dtype) -> str:
    """`auto` is the finite difference for fp32 parameters and the ghost product otherwise.

    Raises:
        ValueError: for a finite difference in a lower precision, where most weights would not change at all.
    """
    if mode == "auto":
        return "finite_difference" if dtype == torch.float32 else "ghost"
    if mode == "finite_difference" and dtype != torch.float32:
        raise ValueError(f"reward=finite_difference needs fp32 parameters, these are {dtype}; use reward=ghost or reward=auto")
    if mode not in ("finite_difference", "ghost"):
        raise ValueError(f"reward.mode={mode!r} is not one of auto, finite_difference, ghost")
    return mode


class Rewarder:
    """Computes the direction and the probes' rewards of a round. All ranks call it together and get the same result.

    Args:
        model: the model under training, through mads.train.interface.
        references: the reference tasks, weighted equally.
        sizes: logical number of elements by parameter name.
        betas, eps: of the optimizer.
        config: a DirectionRewardConfig, or a BlendRewardConfig.
        mode: of the products; None: the config's.
        flops_per_token: of training, forward and backward, for the record of what rewards cost.
    """

    def __init__(
        self,
        model: RewardModel,
        references: Sequence[ReferenceTask],
        topology,
        sizes: dict[str, int],
        beta2: float,
        eps: float,
        seq_length: int,
        seed: int,
        config,
        mode: str | None = None,
        flops_per_token: int = 0,
    ):
        self._model = model
        self._references = list(references)
        self._topology = topology
        self._sizes = sizes
        self._beta2 = beta2
        self._eps = eps
        self._seq_length = seq_length
        self._seed = seed
        self._config = config
        self._flops_per_token = flops_per_token
        self.mode = resolve_mode(mode or config.mode, model.parameter_dtype)

    def _windows(self, round_: int) -> list[list[np.ndarray]]:
        return [task.windows("direction", self._config.reference_examples, self._seed, round_) for task in self._references]

    def flops(self, samples: Sequence[np.ndarray], round_: int, references: bool = True) -> float:
        """Of one call: the references' gradient; of the probes, two forward passes, or one with the outputs' derivatives, which
        cost as much again, and an output-gradient pass."""
        each = 1.0 if self.mode == "ghost" else 2 / 3  # of forward and backward
        read = sum(len(window) for windows in self._windows(round_) for window in windows) if references else 0
        return self._flops_per_token * (read + sum(len(sample) for sample in samples) * each)

    def direction(self, round_: int) -> Direction:
        """v for this round: the equal-weight mean over tasks of token means over the full text, preconditioned."""
        samples, weights = [], []
        for windows in self._windows(round_):
            targets = sum(len(w) - 1 for w in windows)
            samples += windows
            weights += [1.0 / (len(self._references) * targets)] * len(windows)
        batches = FixedBatches(samples, self._seq_length, self._config.rows_per_batch)
        mine, mine_weights = [], []
        for index in batches.share_of(self._topology.coordinate("dp"), self._topology.size("dp")):
            batch, members = batches.batch(index if index is not None else 0)
            of_segment = torch.tensor([weights[m] for m in members] + [0.0], dtype=torch.float32)
            mine.append(batch)
            mine_weights.append(of_segment[batch.segments] * (1.0 if index is not None else 0.0))
        gradient = self._model.gradient(mine, mine_weights)
        if self._config.preconditioner == "adam":
            moment, steps = self._model.second_moment()
            gradient = preconditioned(
                gradient, moment, steps, self._sizes, self._beta2, self._eps, self._config.damping, self._model.totals
            )
        return make_direction(gradient, self._model.totals)

    def rewards(self, direction: Direction, samples: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """(rewards per target, targets) of token arrays, in their order."""
        batches = FixedBatches(samples, self._seq_length, self._config.rows_per_batch)
        if self.mode == "ghost":
            sums = spread(batches, lambda batches: self._model.ghost_products(batches, direction.vector), self._topology)
        else:
            sums = self._finite_difference(batches, direction)
        return sums / np.maximum(1, batches.targets), batches.targets

    def step_error(self, direction: Direction, samples: Sequence[np.ndarray], rewards: np.ndarray) -> float:
        """By how much rewards at half the step differ from `rewards`, root mean square relative to theirs. A step that is too
        long shows the third derivative in it, one that is too short the rounding of two losses that are nearly equal."""
        batches = FixedBatches(samples, self._seq_length, self._config.rows_per_batch)
        half = self._finite_difference(batches, direction, 0.5) / np.maximum(1, batches.targets)
        size = float(np.sqrt(np.mean(half**2)))
        return float(np.sqrt(np.mean((rewards - half) ** 2))) / size if size > 0 else 0.0

    def _finite_difference(self, batches: FixedBatches, direction: Direction, part: float = 1.0) -> np.ndarray:
        """part: of the configured step."""
        step = part * getattr(self._config, "relative_step", 1e-4) * self._model.parameter_norm()
        sides = []
        for sign in (+1.0, -1.0):
            with self._model.shifted(direction.vector, sign * step):
                sides.append(spread(batches, self._model.sample_losses, self._topology))
        return (sides[0] - sides[1]) / (2.0 * step)

    def __call__(
        self, probes: Probes, samples: Sequence[np.ndarray], round_: int, rate: float = 0.0, mix: Sequence[np.ndarray] = ()
    ) -> RoundRewards:
        """Rewards of the round's probes, whose tokens are `samples`. The model is left bit for bit as it was.

        Args:
            rate: learning rate of the training step to come, which other kinds of rewards need; derivatives do not.
        """
        started = time.perf_counter()
        with self._model.undisturbed():
            direction = self.direction(round_)
            between = time.perf_counter()
            rewards, targets = self.rewards(direction, samples)
            checked, notes, error = min(CHECKED, len(samples)), [], None
            if self.mode == "finite_difference":
                error = self.step_error(direction, samples[:checked], rewards[:checked])
        ended = time.perf_counter()
        diagnostics = {"mode": self.mode, "norm": direction.norm, "shares": direction.shares, "top_share": direction.top_share}
        diagnostics["flops"] = self.flops(samples, round_)
        if error is not None:
            diagnostics["step_error"] = error
            diagnostics["flops"] += self.flops(samples[:checked], round_, references=False)
            if error > MOST_ERROR:
                notes = [
                    f"rewards at half the finite difference's step differ by {error:.0%} (first {checked} probes): set another "
                    "reward.relative_step with reward=finite_difference, or use reward=ghost"
                ]
        seconds = {"reference": between - started, "probes": ended - between}
        return RoundRewards(probes, rewards, targets, diagnostics, seconds, notes=notes)
