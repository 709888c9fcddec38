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
