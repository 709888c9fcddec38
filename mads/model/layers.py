"""The layers of a LLaMA-family decoder (Touvron et al. 2023, arXiv 2302.13971): RMSNorm before each block, RoPE, SwiGLU, grouped
queries. Every parameter is used inside the forward of one of mads.tensor's layers, never bare: ZeRO 3 gathers weights, and ghost
products tap activations, by module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from mads.collectives import all_to_all, group_size
from mads.kernels.elementwise import swiglu
from mads.kernels.packed_attention import Segments, packed_attention
from mads.model.placement import Placement
from mads.model.recompute import recomputed
from mads.model.rope import split_and_turn
from mads.tensor import ColumnParallelLinear, RMSNorm, RowParallelLinear
from mads.tensor.dropout import Draws, attention_seed, default_generator_seeded, hidden_dropout


@dataclass(frozen=True)
class Context:
    """What all layers share in one forward.

    segments: the samples' borders in the whole rows
    cos, sin: RoPE tables [B, S / cp, 1, D / 2] of the positions that this rank works on
    draws: where dropout's masks come from; None = no dropout
    """

    segments: Segments
    cos: torch.Tensor
    sin: torch.Tensor
    draws: Draws | None = None


class Attention(nn.Module):
    """Grouped-query self-attention. Q, K and V are one product; each is cut over the tensor-parallel ranks by itself.

    Under context parallelism a rank has all of its tensor-parallel rank's heads at S / cp positions. Two all-to-alls around the
    attention exchange that for 1 / cp of the heads at all positions (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv 2309.14509).
    """

    def __init__(self, config, name: str, output_std: float, placement: Placement, **common):
        super().__init__()
        h, self.head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
        common = common | placement.for_layers
        t = group_size(placement.tp)
        self.name, self.placement, self.dropout = name, placement, config.attention_dropout
        self.attend = packed_attention  # mads.model.compiled keeps it out of what is compiled
        self.heads, self.kv_heads = config.num_attention_heads // t, config.num_key_value_heads // t  # of this rank
        kv = config.num_key_value_heads * self.head_dim
        product = dict(parts=(h, kv, kv), std=config.init_std, overlap=placement.overlap)
        self.qkv = ColumnParallelLinear(h, h + 2 * kv, name=f"{name}.qkv", **product, **common)
        self.output = RowParallelLinear(h, h, name=f"{name}.output", std=output_std, **common)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # [B, S / cp, heads + 2 kv_heads, D]
        return self.output(recomputed(self.placement.recompute == "selective", self._core, qkv, context))

    def _core(self, qkv: torch.Tensor, context: Context) -> torch.Tensor:
        """[B, S / cp, heads + 2 kv_heads, D] -> [B, S / cp, heads * D]."""
        q, k, v = split_and_turn(qkv, context.cos, context.sin, self.heads, self.kv_heads)
        q, k, v = scatter_heads((q, k, v), self.placement.cp)
        if context.draws is None or self.dropout == 0:
            out = self.attend(q, k, v, context.segments)
        else:
            with default_generator_seeded(q.device, attention_seed(context.draws, self.name)):
                out = self.attend(q, k, v, context.segments, self.dropout)
        return gather_heads(out, self.placement.cp).flatten(2)


def scatter_heads(parts: tuple[torch.Tensor, ...], group) -> list[torch.Tensor]:
    """Each [B, S / cp, heads, D] -> [B, S, heads / cp, D], all in one all-to-all: rank r of the group gets the r-th slice of the
    heads of every part, so that a query head keeps its KV head.

    Raises:
        ValueError: if a part's heads are not divisible by the group's size.
    """
    count = group_size(group)
    if count == 1:
        return list(parts)
    heads = [part.shape[2] for part in parts]
    if any(n % count for n in heads):
        raise ValueError(f"{heads} heads cannot be cut over {count} context-parallel ranks")
    by_rank = torch.cat([part.unflatten(2, (count, -1)) for part in parts], 3).flatten(2, 3)
    return list(all_to_all(by_rank, group, scatter=2, gather=1).split([n // count for n in heads], 2))


def gather_heads(x: torch.Tensor, group) -> torch.Tensor:
    """[B, S, heads / cp, D] -> [B, S / cp, heads, D]."""
    return all_to_all(x, group, scatter=1, gather=2)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate) * up). Gate and up are one product."""

    def __init__(self, config, name: str, output_std: float, placement: Placement, **common):
        super().__init__()
        common = common | placement.for_layers
        h, f = config.hidden_size, config.ffn_hidden_size
        product = dict(parts=(f, f), std=config.init_std, overlap=placement.overlap)
        self.selective = placement.recompute == "selective"
        self.gate_up = ColumnParallelLinear(h, 2 * f, name=f"{name}.gate_up", **product, **common)
        self.down = RowParallelLinear(f, h, name=f"{name}.down", std=output_std, **common)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return recomputed(self.selective, self._down, self.gate_up(x))

    def _down(self, gate_up: torch.Tensor) -> torch.Tensor:
        return self.down(swiglu(gate_up))


class DecoderLayer(nn.Module):
    """x + dropout(attention(norm(x))), then x + dropout(mlp(norm(x)))."""

    def __init__(self, config, name: str, placement: Placement, **common):
        super().__init__()
        # The residual stream adds 2 L outputs: scaled so that their variance at the start does not grow with depth (GPT-2).
        output_std = config.init_std / math.sqrt(2 * config.num_layers)
        norm = {k: v for k, v in common.items() if k != "seed"} | {"eps": config.norm_eps} | placement.for_layers
        self.name, self.dropout, self.full = name, config.hidden_dropout, placement.recompute == "full"
        self.attention_norm = RMSNorm(config.hidden_size, name=f"{name}.attention_norm", **norm)
        self.attention = Attention(config, f"{name}.attention", output_std, placement, **common)
        self.mlp_norm = RMSNorm(config.hidden_size, name=f"{name}.mlp_norm", **norm)
        self.mlp = MLP(config, f"{name}.mlp", output_std, placement, **common)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        return recomputed(self.full, self._blocks, x, context)

    def _blocks(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        attended = self.attention(self.attention_norm(x), context)
        x = x + self._dropped(attended, context, "attention")
        return x + self._dropped(self.mlp(self.mlp_norm(x)), context, "mlp")

    def _dropped(self, x: torch.Tensor, context: Context, block: str) -> torch.Tensor:
        # The layer's own name is read only where it counts: no two layers could share compiled code that reads it.
        if context.draws is None or self.dropout == 0:
            return x
        return hidden_dropout(x, self.dropout, context.draws, f"{self.name}.{block}")
