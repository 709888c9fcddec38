"""Causal attention inside the samples of packed rows: flash-attn's variable-length kernel, tiles on a CPU
(mads.kernels.attention_tiles), or SDPA with a block-diagonal mask."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from mads.kernels.attention_tiles import Plan, plan_tiles, tiled_attention

BACKENDS = ("auto", "sdpa", "flash")


def flash_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why flash-attn cannot run here, or None if it can."""
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed (pip install 'mads[gpu]')"
    if device.type != "cuda":
        return f"it needs a CUDA device, and the tensors are on {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 and bfloat16, not in {dtype}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs compute capability 8.0, and {torch.cuda.get_device_name(device)} is older"
    if head_dim % 8 or head_dim > 256:
        return f"it needs a head size that is a multiple of 8 and at most 256, not {head_dim}"
    return None


def choose_backend(choice: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Resolve auto | sdpa | flash to "sdpa" or "flash"; auto takes flash wherever it can run.

    Raises:
        ValueError: for another word, or for flash where it cannot run, with the reason.
    """
    if choice not in BACKENDS:
        raise ValueError(f"attention = {choice!r} is none of {', '.join(BACKENDS)}")
    if choice == "sdpa":
        return "sdpa"
    reason = flash_unavailable(device, dtype, head_dim)
    if choice == "flash" and reason:
        raise ValueError(f"attention = flash cannot run here: {reason}; choose attention = auto or sdpa")
    return "sdpa" if reason else "flash"


@dataclass(frozen=True)
class Segments:
    """What one backend needs to know about the samples of a batch. Built once per batch and used by every layer.

    plan: tiles on a CPU; else None
    bias: sdpa without a plan: [B, 1, S, S], 0 where attention is allowed and -inf elsewhere; None where each row is one sample,
        which needs no mask
    boundaries: flash: int32 [n + 1], where the samples (and the runs of padding) start in the flattened batch; else None
    longest: flash: length of the longest of them
    """

    backend: str
    plan: Plan | None = None
    bias: torch.Tensor | None = None
    boundaries: torch.Tensor | None = None
    longest: int = 0

    @classmethod
    def build(
        cls,
        ids: torch.Tensor,
        backend: str,
        dtype: torch.dtype,
        device: torch.device | None = None,
        dropout: bool = False,
    ) -> Segments:
        """From segment ids, int64 [B, S] (-1 = padding). Their values are read: keep them on the CPU, or the host waits for the
        accelerator.

        Args:
            dtype, device: those of the queries; device = None: the ids'.
            dropout: whether attention probabilities will be dropped: how many are drawn must not depend on the samples.
        """
        device = ids.device if device is None else device
        if backend == "flash":
            boundaries = _boundaries(ids)
            longest = int(boundaries.diff().max())
            return cls(backend, boundaries=boundaries.to(device, non_blocking=True), longest=longest)
        if dropout:
            return cls.dense(ids.to(device, non_blocking=True), dtype)
        if tiles_run(device, dtype):
            return cls(backend, plan=plan_tiles(ids, dtype))
        if ids.device.type == "cpu" and bool((ids == ids[:, :1]).all()):
            return cls(backend)
        return cls.dense(ids.to(device, non_blocking=True), dtype)

    @classmethod
    def dense(cls, ids: torch.Tensor, dtype: torch.dtype) -> Segments:
        """For SDPA with a mask over whole rows: the reference for all other ways."""
        # Additive and in the queries' dtype: SDPA would convert a boolean mask again in every layer.
        bias = torch.zeros(ids.shape[0], 1, ids.shape[1], ids.shape[1], dtype=dtype, device=ids.device)
        return cls("sdpa", bias=bias.masked_fill_(~allowed(ids).unsqueeze(1), -torch.inf))


def tiles_run(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether SDPA itself would take the kernel that tiles are made for, also with grouped queries: not on an accelerator (there
    one call with a mask is cheaper than many), in PyTorch 2.5 (whose kernel knows no groups), or where the user forbids it."""
    if device.type != "cpu":
        return False
    q, k = (torch.empty(1, heads, 1, 8, dtype=dtype) for heads in (2, 1))
    return torch._fused_sdp_choice(q, k, k, is_causal=True, enable_gqa=True) == SDPBackend.FLASH_ATTENTION.value


def allowed(ids: torch.Tensor) -> torch.Tensor:
    """bool [B, S, S]: query i may see key j: same segment and j <= i. Padding sees padding, so that no row is empty (and NaN)."""
    position = torch.arange(ids.shape[1], device=ids.device)
    return (ids.unsqueeze(2) == ids.unsqueeze(1)) & (position.unsqueeze(1) >= position.unsqueeze(0))


def _boundaries(ids: torch.Tensor) -> torch.Tensor:
    starts = torch.ones_like(ids, dtype=torch.bool)  # every row starts anew, also where padding meets padding
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    end = torch.tensor([ids.numel()], device=ids.device)
    return torch.cat([starts.reshape(-1).nonzero().squeeze(1), end]).to(torch.int32)


def packed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, dropout: float = 0.0) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v, causal and inside each segment.

    dropout: probability with which a softmax entry is zeroed (the others are scaled up), drawn from the default generator of the
        device; seeding it is the caller's business.

    Shapes: q [B, S, H, D]; k, v [B, S, KV, D], with H a multiple of KV: query head i reads KV head i // (H / KV) -> [B, S, H, D].
    """
    if segments.backend == "flash":
        varlen = importlib.import_module("flash_attn").flash_attn_varlen_func
        cuts, longest = segments.boundaries, segments.longest
        out = varlen(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), cuts, cuts, longest, longest, dropout_p=dropout, causal=True
        )
        return out.view(q.shape)
    if segments.plan is not None:
        return tiled_attention(q, k, v, segments.plan)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=segments.bias,
        is_causal=segments.bias is None,
        dropout_p=dropout,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)
