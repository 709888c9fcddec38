"""Cross entropy of a head whose vocabulary is cut over the tensor-parallel group (Shoeybi et al. 2019, section 3), from its
hidden states: the logits are never whole (kernels/linear_cross_entropy.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable

from mads.collectives import all_gather_flat, copy_to_group, gather_sequence, group_rank, group_size
from mads.kernels.linear_cross_entropy import Columns, Result, linear_cross_entropy
from mads.tensor.checks import require_ids
from mads.tensor.init import padded_vocab_size

IGNORE = -100  # label of a position without a target


@dataclass(frozen=True)
class Objective:
    """What is minimised at every position, over a vocabulary of V tokens with logits x and target y:

        (1 - e) * -log softmax(x)[y]  +  e / V * sum over all v of -log softmax(x)[v]  +  z * (log sum over v of exp(x_v))^2

    label_smoothing: e, in [0, 1); the second term as torch's F.cross_entropy(label_smoothing=e) defines it.
    z_loss: z, not negative (Chowdhery et al. 2022, arXiv 2204.02311, section 5, uses 1e-4).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1 or self.z_loss < 0:
            raise ValueError(f"{self}: label_smoothing must be in [0, 1) and z_loss at least 0")


PLAIN = Objective()


@dataclass(frozen=True)
class Targets:
    """What a head is asked for in place of logits.

    labels: int64 [B, S], at the positions of the head's output, equal on all ranks of the group; -100 = no target
    weights: [B, S], of the losses in the sum; None = 1
    objective: of every position
    direction: of the weight, shaped as it is on this rank; asks for ghost products too
    """

    labels: torch.Tensor
    weights: torch.Tensor | None = None
    objective: Objective = PLAIN
    direction: torch.Tensor | None = None


def vocab_parallel_cross_entropy(
    x: torch.Tensor, weight: torch.Tensor, targets: Targets, vocab_size: int, group=None, sequence_parallel: bool = False
) -> tuple[torch.Tensor, ...]:
    """(sum of weight * loss, losses [B, S] of every position) of a head with this rank's rows of W.

    The sum can be differentiated, once; the losses cannot. Both are float32 (float64 for float64 rows) and equal on all ranks of
    the group. In a pass without gradient no gradient is computed.

    With targets.direction there are, third, this rank's addends [B, S] of <direction, gradient of weight * loss>, and the weight
    gets no gradient.

    Args:
        x: hidden states [B, S, H]; under sequence parallelism this rank's slice [B, S / t, H].
        weight: [padded vocabulary / t, H].
        vocab_size: logical size: rows of W from there on are padding, outside of the softmax.

    Raises:
        ValueError: if the weight is not this rank's slice (the whole one would give the loss + log t), or a label is outside of
            the vocabulary (on CUDA an asynchronous device assertion).
    """
    count = group_size(group)
    if len(weight) != padded_vocab_size(vocab_size, count) // count:
        raise ValueError(
            f"a weight of {len(weight)} rows: at tensor-parallel size {count} a vocabulary of {vocab_size} needs this rank's "
            f"{padded_vocab_size(vocab_size, count) // count}, not the gathered weight"
        )
    require_ids(targets.labels, vocab_size, "label", ignore=IGNORE)
    x = gather_sequence(x, group) if sequence_parallel else copy_to_group(x, group)
    if x.shape[:-1] != targets.labels.shape:
        raise ValueError(f"hidden states of shape {tuple(x.shape)} with labels of shape {tuple(targets.labels.shape)}")
    rows, shape = x.flatten(0, -2), targets.labels.shape
    task = _Task(rows.detach(), weight, targets, vocab_size, group)
    if torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad):
        total, *each = _VocabParallelCrossEntropy.apply(rows, weight, task)
    else:
        total, *each = task.results(task.run())
    return total, *(values.view(shape) for values in each)


class _Task:
    def __init__(self, rows: torch.Tensor, weight: torch.Tensor, targets: Targets, vocab_size: int, group):
        self.rows, self.weight, self.group, self.objective = rows, weight.detach(), group, targets.objective
        self.direction = targets.direction
        self.labels = targets.labels.reshape(-1)
        self.weights = None if targets.weights is None else targets.weights.reshape(-1)
        first = group_rank(group) * len(weight)
        self.columns = Columns(first, min(max(vocab_size - first, 0), len(weight)), vocab_size)

    def run(self, **wanted) -> Result:
        o = self.objective
        common = dict(smoothing=o.label_smoothing, z_loss=o.z_loss, ignore_index=IGNORE, combine=self._combine)
        wanted["direction"] = self.direction
        return linear_cross_entropy(self.rows, self.weight, self.labels, self.columns, self.weights, **common, **wanted)

    def _combine(self, own: torch.Tensor) -> torch.Tensor:
        if group_size(self.group) == 1:
            return own
        every = all_gather_flat(own.reshape(-1), self.group).view(-1, *own.shape)  # [t, 3, n], the same bits on all ranks
        return torch.stack([every[:, 0].logsumexp(0), every[:, 1].sum(0), every[:, 2].sum(0)])

    def results(self, result: Result) -> tuple[torch.Tensor, ...]:
        losses = result.losses
        total = (losses if self.weights is None else losses * self.weights.to(losses.dtype)).sum()
        return (total, losses) if result.products is None else (total, losses, result.products)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Both gradients exist when the forward pass ends; backward scales them."""

    @staticmethod
    def forward(ctx, rows, weight, task):
        result = task.run(want_dx=ctx.needs_input_grad[0], want_dw=ctx.needs_input_grad[1] and task.direction is None)
        ctx.save_for_backward(result.dx, result.dw)
        total, *each = task.results(result)
        ctx.mark_non_differentiable(*each)
        return total, *each

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *_):
        # In place, for they are large. A second pass through the same graph is refused: autograd counts changes of saved tensors.
        return *(None if g is None else g.mul_(upstream) for g in ctx.saved_tensors), None
