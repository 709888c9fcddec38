"""A LLaMA-family decoder (Touvron et al. 2023, arXiv 2302.13971): RMSNorm before each block, RoPE, SwiGLU, grouped queries.

Every parameter is used inside the forward of one of mads.tensor's layers, never bare: ZeRO 3 gathers weights, and ghost products
tap activations, by module. Logical parameter names are the module paths below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mads.collectives import gather_last_dim, group_size
from mads.kernels.packed_attention import Segments, choose_backend, packed_attention
from mads.model.rope import apply_rope, rope_tables
from mads.model.shape import check_model_config
from mads.tensor import (
    ColumnParallelLinear,
    RMSNorm,
    RowParallelLinear,
    VocabParallelEmbedding,
    VocabParallelHead,
    vocab_parallel_cross_entropy,
)


@dataclass(frozen=True)
class Packing:
    """What all layers share in one forward: the samples' borders and the RoPE tables [B, S, 1, D / 2]."""

    segments: Segments
    cos: torch.Tensor
    sin: torch.Tensor


class Attention(nn.Module):
    """Grouped-query self-attention. Q, K and V are one product; each is cut over the ranks by itself."""

    def __init__(self, config, name: str, output_std: float, **common):
        super().__init__()
        h, self.head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
        t = group_size(common["group"])
        self.heads, self.kv_heads = config.num_attention_heads // t, config.num_key_value_heads // t  # of this rank
        kv = config.num_key_value_heads * self.head_dim
        self.qkv = ColumnParallelLinear(h, h + 2 * kv, parts=(h, kv, kv), name=f"{name}.qkv", std=config.init_std, **common)
        self.output = RowParallelLinear(h, h, name=f"{name}.output", std=output_std, **common)

    def forward(self, x: torch.Tensor, packing: Packing) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # [B, S, heads + 2 kv_heads, D]
        turned = apply_rope(qkv[:, :, : self.heads + self.kv_heads], packing.cos, packing.sin)
        q, k = turned.split([self.heads, self.kv_heads], 2)
        v = qkv[:, :, self.heads + self.kv_heads :]
        return self.output(packed_attention(q, k, v, packing.segments).flatten(2))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate) * up). Gate and up are one product."""

    def __init__(self, config, name: str, output_std: float, **common):
        super().__init__()
        h, f = config.hidden_size, config.ffn_hidden_size
        self.gate_up = ColumnParallelLinear(h, 2 * f, parts=(f, f), name=f"{name}.gate_up", std=config.init_std, **common)
        self.down = RowParallelLinear(f, h, name=f"{name}.down", std=output_std, **common)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config, name: str, **common):
        super().__init__()
        # The residual stream adds 2 L outputs: scaled so that their variance at the start does not grow with depth (GPT-2).
        output_std = config.init_std / math.sqrt(2 * config.num_layers)
        norm = {k: v for k, v in common.items() if k != "seed"} | {"eps": config.norm_eps}
        self.attention_norm = RMSNorm(config.hidden_size, name=f"{name}.attention_norm", **norm)
        self.attention = Attention(config, f"{name}.attention", output_std, **common)
        self.mlp_norm = RMSNorm(config.hidden_size, name=f"{name}.mlp_norm", **norm)
        self.mlp = MLP(config, f"{name}.mlp", output_std, **common)

    def forward(self, x: torch.Tensor, packing: Packing) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), packing)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """The whole model.

    Args:
        config: the fields of mads.config.schema.ModelConfig.
        group: the tensor-parallel group; None = one rank.
        seed: of the start weights, which are the same for every tensor-parallel size.
        device, dtype: of the parameters. On the meta device nothing is drawn.

    Raises:
        ValueError: if the sizes do not fit each other or the group's size.
    """

    def __init__(self, config, group=None, seed: int = 0, device=None, dtype: torch.dtype = torch.float32):
        super().__init__()
        check_model_config(config, group_size(group))
        self.config = config
        self.group = group
        placed = dict(group=group, device=device, dtype=dtype)
        drawn = placed | {"seed": seed}
        h, vocab, std = config.hidden_size, config.vocab_size, config.init_std
        self.embedding = VocabParallelEmbedding(vocab, h, name="embedding", std=std, **drawn)
        self.layers = nn.ModuleList(DecoderLayer(config, f"layers.{i}", **drawn) for i in range(config.num_layers))
        self.norm = RMSNorm(h, name="norm", eps=config.norm_eps, **placed)
        tied = self.embedding.weight if config.tie_embeddings else None
        self.head = VocabParallelHead(h, vocab, name="head", std=std, tied=tied, **drawn)

    def forward(
        self, tokens: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor, segments: torch.Tensor
    ) -> torch.Tensor:
        """Loss of every position, [B, S] in float32 (float64 for float64 parameters); 0 where the label is -100.

        The arguments are the fields of mads.data.batch.PackedBatch, int64 [B, S] each.
        """
        logits = self.head(self._hidden(tokens, positions, segments))
        return vocab_parallel_cross_entropy(logits, labels, self.config.vocab_size, self.group)

    def logits(self, tokens: torch.Tensor, positions: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        """Logits over the whole vocabulary on every rank, [B, S, vocab_size] in the parameters' dtype."""
        local = self.head(self._hidden(tokens, positions, segments))
        return gather_last_dim(local, self.group)[..., : self.config.vocab_size]

    def _hidden(self, tokens: torch.Tensor, positions: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)  # [B, S, hidden]
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        backend = choose_backend(self.config.attention, x.device, x.dtype, head_dim)
        cos, sin = rope_tables(positions, head_dim, self.config.rope_theta, x.dtype)
        packing = Packing(Segments.build(segments, backend, x.dtype), cos, sin)
        for layer in self.layers:
            x = layer(x, packing)
        return self.norm(x)
