"""The layers of a LLaMA-family decoder (Touvron et al. 2023, arXiv 2302.13971): RMSNorm before each block, RoPE, SwiGLU, grouped
queries. Every parameter is used inside the forward of one of mads.tensor's layers, never bare: ZeRO 3 gathers weights, and ghost
products tap activations, by module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mads.collectives import group_size
from mads.kernels.packed_attention import Segments, packed_attention
from mads.model.placement import Placement
from mads.model.rope import apply_rope
from mads.tensor import ColumnParallelLinear, RMSNorm, RowParallelLinear


@dataclass(frozen=True)
class Context:
    """What all layers share in one forward: the samples' borders and the RoPE tables [B, S, 1, D / 2]."""

    segments: Segments
    cos: torch.Tensor
    sin: torch.Tensor


class Attention(nn.Module):
    """Grouped-query self-attention. Q, K and V are one product; each is cut over the ranks by itself."""

    def __init__(self, config, name: str, output_std: float, placement: Placement, **common):
        super().__init__()
        h, self.head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
        common["group"] = placement.tp
        t = group_size(placement.tp)
        self.heads, self.kv_heads = config.num_attention_heads // t, config.num_key_value_heads // t  # of this rank
        kv = config.num_key_value_heads * self.head_dim
        self.qkv = ColumnParallelLinear(h, h + 2 * kv, parts=(h, kv, kv), name=f"{name}.qkv", std=config.init_std, **common)
        self.output = RowParallelLinear(h, h, name=f"{name}.output", std=output_std, **common)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # [B, S, heads + 2 kv_heads, D]
        turned = apply_rope(qkv[:, :, : self.heads + self.kv_heads], context.cos, context.sin)
        q, k = turned.split([self.heads, self.kv_heads], 2)
        v = qkv[:, :, self.heads + self.kv_heads :]
        return self.output(packed_attention(q, k, v, context.segments).flatten(2))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate) * up). Gate and up are one product."""

    def __init__(self, config, name: str, output_std: float, placement: Placement, **common):
        super().__init__()
        common["group"] = placement.tp
        h, f = config.hidden_size, config.ffn_hidden_size
        self.gate_up = ColumnParallelLinear(h, 2 * f, parts=(f, f), name=f"{name}.gate_up", std=config.init_std, **common)
        self.down = RowParallelLinear(f, h, name=f"{name}.down", std=output_std, **common)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config, name: str, placement: Placement, **common):
        super().__init__()
        # The residual stream adds 2 L outputs: scaled so that their variance at the start does not grow with depth (GPT-2).
        output_std = config.init_std / math.sqrt(2 * config.num_layers)
        norm = {k: v for k, v in common.items() if k != "seed"} | {"eps": config.norm_eps, "group": placement.tp}
        self.attention_norm = RMSNorm(config.hidden_size, name=f"{name}.attention_norm", **norm)
        self.attention = Attention(config, f"{name}.attention", output_std, placement, **common)
        self.mlp_norm = RMSNorm(config.hidden_size, name=f"{name}.mlp_norm", **norm)
        self.mlp = MLP(config, f"{name}.mlp", output_std, placement, **common)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), context)
        return x + self.mlp(self.mlp_norm(x))
