"""The trained model in float64, one sample at a time by plain autograd, and the optimizer step written out.

It is slow and simple on purpose: the rewards of mads.reward are measured against it. Vectors are flat float64 tensors [P], the
parameters one after the other in the order of their sorted names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from mads.data.batch import PackedBatch, make_batch, sum_by_sample
from mads.eval.losses import FixedBatches
from mads.model.decoder import Decoder
from mads.reward.reference import ReferenceTask
from mads.train.engine import TrainEngine, adamw


class ReferenceSet:
    """Examples of one part of every task. The loss is the equal-weight mean over tasks of token means, as in mads.reward."""

    def __init__(self, tasks: Sequence[ReferenceTask], part: str, examples: int, seed: int, seq_length: int, rows: int):
        samples: list[np.ndarray] = []
        weights: list[float] = []
        for task in tasks:
            windows = task.windows(part, examples, seed)
            targets = sum(len(w) - 1 for w in windows)
            samples += windows
            weights += [1.0 / (len(tasks) * targets)] * len(windows)
        packed = FixedBatches(samples, seq_length, rows)
        self.rows = packed.packing.rows
        self.batches = []
        for index in range(packed.count):
            batch, members = packed.batch(index)
            self.batches.append((batch, torch.tensor([weights[m] for m in members], dtype=torch.float64)))


@dataclass(frozen=True)
class AdamState:
    """Adam's moments [P] as stored after `steps` steps, and its settings."""

    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    steps: int
    beta1: float
    beta2: float
    eps: float
    grad_clip: float

    def _denominator(self, gradient: torch.Tensor) -> torch.Tensor:
        moment = self.beta2 * self.exp_avg_sq + (1 - self.beta2) * gradient.square()
        return moment.div_(1 - self.beta2 ** (self.steps + 1)).sqrt_().add_(self.eps)

    def clip_factor(self, gradient: torch.Tensor) -> float:
        return min(1.0, self.grad_clip / (float(gradient.norm()) + 1e-6))

    def update(self, gradient: torch.Tensor, clip: bool = True) -> torch.Tensor:
        """u of the step theta - rate * u (weight decay left out: it is the same for every gradient)."""
        if clip:
            gradient = gradient * self.clip_factor(gradient)
        moment = self.beta1 * self.exp_avg + (1 - self.beta1) * gradient
        return moment.div_(1 - self.beta1 ** (self.steps + 1)).div_(self._denominator(gradient))

    def frozen_difference(self, with_x: torch.Tensor, without_x: torch.Tensor) -> torch.Tensor:
        """u(with_x) - u(without_x), unclipped, if x left the second moment alone: what a fixed preconditioner sees."""
        factor = (1 - self.beta1) / (1 - self.beta1 ** (self.steps + 1))
        return (with_x - without_x).mul_(factor).div_(self._denominator(without_x))


class ExactModel:
    """A float64 copy of what an engine holds (fp32 master weights and moments)."""

    def __init__(self, engine: TrainEngine, config):
        self._optim = config.optim
        self.seq_length = config.data.seq_length
        self.names = [name for name, _ in engine.parameters]
        self.module = Decoder(config.model).double()
        self._single = Decoder(config.model)
        self._parameters, self._single_parameters = (
            [dict(module.named_parameters())[name] for name in self.names] for module in (self.module, self._single)
        )

        def flat(key):
            return torch.cat([engine.state.full(p, key).detach().double().flatten() for _, p in engine.parameters])

        self.theta = flat("weight")
        self.adam = AdamState(
            flat("exp_avg"),
            flat("exp_avg_sq"),
            engine.state.steps,
            config.optim.beta1,
            config.optim.beta2,
            config.optim.eps,
            config.optim.grad_clip,
        )
        self.place(self.theta)

    def flatten(self, vector: dict[str, torch.Tensor]) -> torch.Tensor:
        """A vector of mads.train.interface (whole tensors) as [P]."""
        return torch.cat([vector[name].double().flatten() for name in self.names])

    @property
    def parameter_count(self) -> int:
        return len(self.theta)

    def _pieces(self, vector: torch.Tensor) -> list[torch.Tensor]:
        pieces = vector.split([p.numel() for p in self._parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, self._parameters)]

    @torch.no_grad()
    def place(self, theta: torch.Tensor) -> None:
        """Compute with the parameters theta [P] from now on."""
        for parameter, piece in zip(self._parameters, self._pieces(theta)):
            parameter.copy_(piece)

    @staticmethod
    def _losses(module: Decoder, batch: PackedBatch) -> torch.Tensor:
        """Loss of every position [B, S], from whole logits."""
        logits = module.logits(batch.tokens, batch.positions, batch.segments)
        return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none").view(batch.labels.shape)

    def _token_loss(self, batch: PackedBatch) -> torch.Tensor:
        return self._losses(self.module, batch)

    def _gradient(self, loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self._parameters)])

    def sample_gradient(self, sample: np.ndarray) -> tuple[float, torch.Tensor]:
        """(sum of the token losses, its gradient [P]) of one sample alone in its row."""
        loss = self._token_loss(make_batch([[sample]], self.seq_length)).sum()
        return loss.item(), self._gradient(loss)

    def batch_gradient(self, batches: Sequence[PackedBatch]) -> torch.Tensor:
        """Gradient [P] of the sum of the token losses."""
        return sum(self._gradient(self._token_loss(batch).sum()) for batch in batches)

    @torch.no_grad()
    def reference_loss(self, references: ReferenceSet, theta: torch.Tensor, single: bool = False) -> float:
        """Loss at theta [P]; token losses are computed in float32 if `single`, and summed in float64 in any case."""
        module, parameters = (self._single, self._single_parameters) if single else (self.module, self._parameters)
        for parameter, piece in zip(parameters, self._pieces(theta)):
            parameter.copy_(piece)
        parts = []
        for batch, weight in references.batches:
            token_loss = self._losses(module, batch)
            parts.append(float((sum_by_sample(token_loss, batch) * weight).sum()))
        self.place(self.theta)
        return math.fsum(parts)

    def reference_gradient(self, references: ReferenceSet, theta: torch.Tensor | None = None) -> torch.Tensor:
        """Gradient [P] of the reference loss at theta [P], by default the trained weights."""
        self.place(self.theta if theta is None else theta)
        parts = [
            self._gradient((sum_by_sample(self._token_loss(batch), batch) * weight).sum()) for batch, weight in references.batches
        ]
        self.place(self.theta)
        return sum(parts)

    def step(self, gradient: torch.Tensor, rate: float) -> torch.Tensor:
        """Parameters [P] after one real step from theta: torch's AdamW with the run's settings and torch's own clipping."""
        self.place(self.theta)
        optimizer = adamw(self.module, self._optim)
        for group in optimizer.param_groups:
            group["lr"] = rate
        moments = zip(self._pieces(self.adam.exp_avg), self._pieces(self.adam.exp_avg_sq))
        for parameter, piece, (first, second) in zip(self._parameters, self._pieces(gradient), moments):
            parameter.grad = piece.clone()
            steps = torch.tensor(float(self.adam.steps))
            optimizer.state[parameter] = {"step": steps, "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
        torch.nn.utils.clip_grad_norm_(self._parameters, self.adam.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        stepped = torch.cat([p.detach().flatten() for p in self._parameters])
        self.place(self.theta)
        return stepped


@dataclass(frozen=True)
class TrueStep:
    """One batch of the training size: real steps from the trained weights on it, with and without a further sample.

    summed: gradient of the batch's summed token loss [P]; targets: number of its targets.
    """

    exact: ExactModel
    summed: torch.Tensor
    targets: int

    @property
    def mean(self) -> torch.Tensor:
        return self.summed / self.targets

    def share(self, weight: float) -> float:
        """Share of a further sample of `weight` targets in the token mean."""
        return weight / (self.targets + weight)

    def mean_with(self, gradient: torch.Tensor, weight: float) -> torch.Tensor:
        return (self.summed + gradient) / (self.targets + weight)

    def linear_gains(self, gradient: torch.Tensor, weight: float, references: dict[str, torch.Tensor]) -> dict[str, float]:
        """The gain at first order in the reference loss, for three step rules and every reference gradient [P]."""
        adam, without, with_x = self.exact.adam, self.mean, self.mean_with(gradient, weight)
        changes = {
            "fixed P, no clipping": adam.frozen_difference(with_x, without),
            "x in the second moment, no clipping": adam.update(with_x, clip=False) - adam.update(without, clip=False),
            "whole update": adam.update(with_x) - adam.update(without),
        }
        share = self.share(weight)
        return {
            f"{name}, {rule}": float(reference @ change) / share
            for name, reference in references.items()
            for rule, change in changes.items()
        }

    def real_gains(
        self, samples: list[tuple[torch.Tensor, float]], references: ReferenceSet, rate: float, single: bool
    ) -> np.ndarray:
        """The gain with nothing derived: two steps of torch.optim.AdamW in float64, two reference losses, subtracted."""
        before = self.exact.reference_loss(references, self.exact.step(self.mean, rate), single)
        gains = []
        for gradient, weight in samples:
            after = self.exact.reference_loss(references, self.exact.step(self.mean_with(gradient, weight), rate), single)
            gains.append((before - after) / rate / self.share(weight))
        return np.array(gains)
