"""Softmax statistics and the gradient of a block of this rank's logits, each in one pass over memory, on a GPU.

What a vocabulary-parallel cross entropy needs between the head's matrix products, with one exchange of three numbers a row in
between: `_Rows` of mads.kernels.linear_cross_entropy does the same with torch's operators, and is the reference.
"""

from __future__ import annotations

import importlib.util

import torch

BLOCK = 4096  # columns at a time: 16 of each thread
WARPS = 8


def available(device: torch.device | str) -> bool:
    """Whether the kernels run on this device: a CUDA device, and triton is installed (torch's CUDA builds bring it)."""
    return torch.device(device).type == "cuda" and importlib.util.find_spec("triton") is not None


def row_statistics(logits: torch.Tensor, labels: torch.Tensor, valid: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a rank tells the others of its slice of each row; one pass over the logits, in float32.

    Args:
        logits: [n, V/t], columns adjacent, rows as far apart as they like; bf16, fp16 or fp32; unchanged.
        labels: int64 [n]: the column of the row's target; outside of 0 .. valid-1 for one on another rank, or none.
        valid: columns 0 .. valid-1 are tokens, the rest is padding whose values do not matter.

    Returns:
        float32 [n] each: log sum exp of the row's valid logits (-inf without any); the target's logit (0 where it is not here);
        the sum of the valid logits.

    Raises:
        ValueError: for shapes, strides or dtypes other than these.
    """
    from mads.kernels.cross_entropy_programs import statistics

    _check(logits, valid, torch.int64, labels)
    labels = _aligned(labels)
    lse, target, total = (torch.empty(len(logits), dtype=torch.float32, device=logits.device) for _ in range(3))
    if len(logits):
        statistics[(len(logits),)](logits, logits.stride(0), labels, lse, target, total, valid, BLOCK=BLOCK, num_warps=WARPS)
    return lse, target, total


def logits_gradient_(
    logits: torch.Tensor,
    lse: torch.Tensor,
    labels: torch.Tensor,
    scale: torch.Tensor,
    valid: int,
    vocab_size: int,
    smoothing: float = 0.0,
    z: float = 0.0,
) -> torch.Tensor:
    """Overwrite the logits by the gradient of the sum of scale * loss, with the loss of mads.tensor.cross_entropy.Objective:

        scale * (softmax * (1 + 2 z lse) - smoothing / vocab_size - (1 - smoothing) * [column is the target]), 0 in the padding

    Args:
        logits, labels, valid: as in row_statistics.
        lse: float32 [n], over the whole vocabulary, that is, all ranks.
        scale: float32 [n]: the gradient of each row's loss; 0 for a row without a target.
        vocab_size: logical size of the whole vocabulary.
        smoothing, z: of the objective.

    Returns:
        logits.

    Raises:
        ValueError: for shapes, strides or dtypes other than these.
    """
    from mads.kernels.cross_entropy_programs import gradient

    _check(logits, valid, torch.int64, labels)
    _check(logits, valid, torch.float32, lse, scale)
    labels = _aligned(labels)
    rows, width = logits.shape
    if rows and width:
        gradient[(rows, -(-width // BLOCK))](
            logits,
            logits.stride(0),
            lse,
            labels,
            scale,
            width,
            valid,
            smoothing / vocab_size,
            1.0 - smoothing,
            2.0 * z,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return logits


def _aligned(labels: torch.Tensor) -> torch.Tensor:
    """A slice of labels may begin at any 8 bytes; from such flash-attn (its cross_entropy.py) saw Triton load wrong labels."""
    return labels if labels.data_ptr() % 16 == 0 else labels.clone()


def _check(logits: torch.Tensor, valid: int, dtype: torch.dtype, *per_row: torch.Tensor) -> None:
    if logits.dim() != 2 or logits.stride(1) != 1 or not 0 <= valid <= logits.shape[1]:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)}, strides {logits.stride()}, {valid} of the columns valid: the kernel takes "
            "[n, columns] with adjacent columns, and as many valid ones at most"
        )
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"logits in {logits.dtype}: the kernel takes float32, bfloat16 and float16")
    for tensor in per_row:
        if (
            tensor.shape != logits.shape[:1]
            or tensor.dtype != dtype
            or not tensor.is_contiguous()
            or tensor.device != logits.device
        ):
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}, strides {tensor.stride()}: the "
                f"kernel takes one {dtype} for each of the {len(logits)} rows, contiguous, on {logits.device}"
            )
