"""RMSNorm and SwiGLU with fewer passes over memory than their operations one by one, and less kept for backward. Each has its
reference beside it; torch.compile gets the references, which it fuses by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467).

    PyTorch has one kernel for it on accelerators, none on a CPU. Types narrower than float32 are left to PyTorch everywhere: it
    computes them in float32.

    Shapes: x [..., h], weight [h] -> [..., h].
    """
    narrow = x.dtype not in (torch.float32, torch.float64) or weight.dtype != x.dtype
    if x.device.type != "cpu" or narrow or torch.compiler.is_compiling():
        return rms_norm_reference(x, weight, eps)
    return _RMSNorm.apply(x.reshape(-1, x.shape[-1]), weight, eps).view(x.shape)


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`rms_norm` by PyTorch."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


class _RMSNorm(torch.autograd.Function):
    """Keeps its input and one number per position. Shapes: x [n, h], weight [h]."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x, inverse).mul_(weight)

    @staticmethod
    def backward(ctx, upstream):
        x, weight, inverse = ctx.saved_tensors
        product = upstream * x
        along = torch.mv(product, weight).unsqueeze(1)  # <upstream * weight, x> of each position
        d_weight = torch.mv(product.t(), inverse.squeeze(1))
        dx = torch.mul(upstream, weight, out=product).mul_(inverse)
        return dx.addcmul_(x, inverse.pow(3).mul_(along), value=-1 / x.shape[-1]), d_weight, None


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020, arXiv 2002.05202); the same bits as the reference, on every device.

    Shapes: gate and up side by side [..., 2 f] -> [..., f].
    """
    return swiglu_reference(gate_up) if torch.compiler.is_compiling() else _SwiGLU.apply(gate_up)


def swiglu_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """`swiglu` by two operations, which keep silu(gate) for backward."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    """Keeps its input; backward computes silu(gate) again."""

    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, upstream):
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        gradient = torch.empty_like(gate_up)
        d_gate, d_up = gradient.chunk(2, -1)
        torch.mul(upstream, up, out=d_gate)
        torch.ops.aten.silu_backward.grad_input(d_gate, gate, grad_input=d_gate)
        torch.ops.aten.silu.out(gate, out=d_up).mul_(upstream)
        return gradient
