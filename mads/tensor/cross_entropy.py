"""Cross entropy over logits whose vocabulary is cut over the tensor-parallel group (Shoeybi et al. 2019, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mads.collectives import all_reduce_, group_rank, group_size
from mads.tensor.checks import require_ids
from mads.tensor.init import padded_vocab_size

# Logits in work at a time: bounds the float32 copies of a bf16 input, and keeps the work in the cache on a CPU.
_CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}


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


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Saves the logits as they are (no copy) and one log-sum-exp per position; backward recomputes the softmax."""

    @staticmethod
    def forward(ctx, logits, labels, first, valid, group, ignore_index, vocab_size, objective):
        # logits [N, V/t], labels [N]; the columns 0 .. valid-1 are the tokens first .. first+valid-1, the rest is padding
        accumulate = torch.float64 if logits.dtype == torch.float64 else torch.float32
        smoothing, z = objective.label_smoothing, objective.z_loss
        lse = torch.full(labels.shape, -torch.inf, dtype=accumulate, device=logits.device)
        target, total = torch.zeros_like(lse), torch.zeros_like(lse)
        local = labels - first
        here = (local >= 0) & (local < valid)
        if valid:
            for rows in _row_chunks(logits):
                block = logits[rows, :valid].to(accumulate)
                lse[rows] = torch.logsumexp(block, -1)
                if smoothing:
                    total[rows] = block.sum(-1)
            picked = logits.gather(1, local.clamp(0, valid - 1).unsqueeze(1)).squeeze(1).to(accumulate)
            target = torch.where(here, picked, target)
        if group_size(group) > 1:
            highest = all_reduce_(lse.clone(), group, "max")
            sums = torch.stack([(lse - highest).exp(), target, total])
            all_reduce_(sums, group)
            lse, target, total = highest + sums[0].log(), sums[1], sums[2]
        counted = labels != ignore_index
        ctx.save_for_backward(logits, lse, local, here, counted)
        ctx.valid, ctx.vocab_size, ctx.objective = valid, vocab_size, objective
        loss = lse - target
        if smoothing:  # the mean over the logical vocabulary of -log softmax is lse - mean of the logits
            loss = (1 - smoothing) * loss + smoothing * (lse - total / vocab_size)
        if z:
            loss = loss + z * lse.square()
        return torch.where(counted, loss, 0.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        logits, lse, local, here, counted = ctx.saved_tensors
        valid, smoothing, z = ctx.valid, ctx.objective.label_smoothing, ctx.objective.z_loss
        scale = torch.where(counted, upstream.to(lse.dtype), 0.0)
        grad = torch.empty_like(logits)
        grad[:, valid:] = 0
        if not valid:
            return grad, *[None] * 7
        column = local.clamp(0, valid - 1).unsqueeze(1)
        at_target = here.to(lse.dtype).unsqueeze(1) * (smoothing - 1)
        for rows in _row_chunks(logits):
            block = grad[rows, :valid]
            softmax = block if block.dtype == lse.dtype else torch.empty_like(block, dtype=lse.dtype)
            torch.sub(logits[rows, :valid], lse[rows].unsqueeze(1), out=softmax).exp_()
            if z:
                softmax.mul_((1 + 2 * z * lse[rows]).unsqueeze(1))
            if smoothing:
                softmax.sub_(smoothing / ctx.vocab_size)
            softmax.scatter_add_(1, column[rows], at_target[rows])
            softmax.mul_(scale[rows].unsqueeze(1))
            if softmax is not block:
                block.copy_(softmax)
        return grad, *[None] * 7


def _row_chunks(logits: torch.Tensor) -> list[slice]:
    step = max(1, _CHUNK_ELEMENTS.get(logits.device.type, 1 << 26) // max(1, logits.shape[1]))
    return [slice(i, i + step) for i in range(0, logits.shape[0], step)]


def vocab_parallel_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    group=None,
    ignore_index: int = -100,
    objective: Objective = PLAIN,
) -> torch.Tensor:
    """-log softmax(logits)[label] at every position, over the whole vocabulary; with an objective, its smoothing and z-loss too.

    Args:
        logits: this rank's slice of the logits [..., padded vocabulary / t]; left unchanged. bf16 and fp16 accumulate in float32.
        labels: int64 [...], equal on all ranks; a position with the label ignore_index has loss 0 and no gradient.
        vocab_size: logical size: columns from there on are padding, outside of the softmax, and get gradient 0.
        group: the tensor-parallel group; None = the logits are whole.

    Returns:
        Loss per position [...], float32 (float64 for float64 logits), bitwise equal on all ranks of the group.

    Raises:
        ValueError: if the logits are not this rank's slice (gathered logits would give the loss + log t), or a label is outside
            of the vocabulary (on CUDA an asynchronous device assertion).
    """
    count, rank = group_size(group), group_rank(group)
    width = padded_vocab_size(vocab_size, count) // count
    if logits.shape[-1] != width or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} with labels of shape {tuple(labels.shape)}: at tensor-parallel size {count} "
            f"a vocabulary of {vocab_size} needs this rank's {width} columns per label, not the gathered logits"
        )
    require_ids(labels, vocab_size, "label", ignore=ignore_index)
    valid = min(max(vocab_size - rank * width, 0), width)
    rows, targets = logits.reshape(-1, width), labels.reshape(-1)
    losses = _VocabParallelCrossEntropy.apply(rows, targets, rank * width, valid, group, ignore_index, vocab_size, objective)
    return losses.view(labels.shape)
