"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), the two halves of a head rotated against each other as in LLaMA's
released weights."""

from __future__ import annotations

import torch


def rope_tables(positions: torch.Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) of the angles, each [B, S, 1, head_dim / 2] in `dtype`, from positions int64 [B, S].

    Angles are computed in float32 (float64 if dtype is), never in bf16, which cannot tell position 256 from 257. There is no
    buffer that a cast of the module could round.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    exponents = torch.arange(0, head_dim, 2, dtype=compute, device=positions.device) / head_dim
    angles = positions.to(compute).unsqueeze(-1) * (1.0 / theta**exponents)
    return angles.cos().to(dtype).unsqueeze(2), angles.sin().to(dtype).unsqueeze(2)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [B, S, heads, D]: channel i of the first half with channel i of the second."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def split_and_turn(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, kv_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q and K, turned as `apply_rope` does, and V; in half of the passes over memory that it and slices take.

    Shapes: qkv [B, S, heads + 2 kv_heads, D]; cos, sin as from `rope_tables` -> [B, S, heads, D], 2 x [B, S, kv_heads, D].
    """
    if torch.compiler.is_compiling():  # it fuses the plain form by itself
        turned = apply_rope(qkv[:, :, : heads + kv_heads], cos, sin)
        return *turned.split([heads, kv_heads], 2), qkv[:, :, heads + kv_heads :]
    return _SplitAndTurn.apply(qkv, cos, sin, heads, kv_heads)


class _SplitAndTurn(torch.autograd.Function):
    """Keeps nothing but the tables; the gradients of Q, K and V are written into one buffer."""

    @staticmethod
    def forward(ctx, qkv, cos, sin, heads, kv_heads):
        ctx.save_for_backward(cos, sin)
        turned = qkv.new_empty(*qkv.shape[:2], heads + kv_heads, qkv.shape[3])
        _rotate(qkv[:, :, : heads + kv_heads], cos, sin, turned, 1)
        return *turned.split([heads, kv_heads], 2), qkv[:, :, heads + kv_heads :]

    @staticmethod
    def backward(ctx, dq, dk, dv):
        cos, sin = ctx.saved_tensors
        heads, kv_heads = dq.shape[2], dk.shape[2]
        gradient = dq.new_empty(*dq.shape[:2], heads + 2 * kv_heads, dq.shape[3])
        to_q, to_k, to_v = gradient.split([heads, kv_heads, kv_heads], 2)
        _rotate(dq, cos, sin, to_q, -1)
        _rotate(dk, cos, sin, to_k, -1)
        to_v.copy_(dv)
        return gradient, None, None, None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, sign: int) -> None:
    """By the angles, or for sign = -1 back, which is the gradient."""
    first, second = x.chunk(2, -1)
    into_first, into_second = out.chunk(2, -1)
    torch.mul(first, cos, out=into_first).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=into_second).addcmul_(first, sin, value=sign)
