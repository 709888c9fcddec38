"""A decoder as a list of pieces, which one module runs from end to end or pipeline stages share among them.

A piece is called as piece(x, context) -> x. The first turns tokens into hidden states, the last hidden states into logits.
Logical parameter names do not depend on who holds a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mads.collectives import group_size
from mads.kernels.packed_attention import Segments, choose_backend
from mads.model.layers import Context, DecoderLayer
from mads.model.placement import Placement
from mads.model.rope import rope_tables
from mads.model.shape import check_model_config
from mads.tensor import RMSNorm, VocabParallelEmbedding, VocabParallelHead


class Input(nn.Module):
    """tokens int64 [B, S] -> hidden states [B, S, hidden]."""

    def __init__(self, config, placement: Placement, **common):
        super().__init__()
        self.embedding = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, name="embedding", std=config.init_std, group=placement.tp, **common
        )

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        return self.embedding(x)


class Output(nn.Module):
    """Hidden states [B, S, hidden] -> this rank's slice of the logits [B, S, padded vocabulary / t].

    Args:
        tied: the embedding's Parameter, where this rank holds it; else a tied head makes a copy of it.
    """

    def __init__(self, config, placement: Placement, tied: nn.Parameter | None = None, **common):
        super().__init__()
        common["group"] = placement.tp
        h, vocab = config.hidden_size, config.vocab_size
        norm = {k: v for k, v in common.items() if k != "seed"} | {"eps": config.norm_eps}
        self.norm = RMSNorm(h, name="norm", **norm)
        if config.tie_embeddings and tied is None:
            self.head = VocabParallelHead(h, vocab, name="embedding", std=config.init_std, copy=True, **common)
        else:
            self.head = VocabParallelHead(h, vocab, name="head", std=config.init_std, tied=tied, **common)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        return self.head(self.norm(x))


@dataclass(frozen=True)
class PieceSpec:
    """What a piece is called, how it is built, and its floating-point operations per token relative to one multiplication by a
    weight; a pipeline balances its stages by it."""

    name: str
    build: Callable[[], nn.Module]
    cost: float


def piece_specs(config, placement: Placement, **common) -> list[PieceSpec]:
    """The pieces of a decoder, in order; nothing is allocated before `build` is called.

    Args:
        config: the fields of mads.config.schema.ModelConfig.
        common: seed, device and dtype, as for `Decoder`.

    Raises:
        ValueError: if the sizes do not fit each other or the group's size.
    """
    check_model_config(config, group_size(placement.tp))
    h, f = config.hidden_size, config.ffn_hidden_size
    kv = h // config.num_attention_heads * config.num_key_value_heads
    specs = [PieceSpec("embedding", lambda: Input(config, placement, **common), 0.0)]
    for i in range(config.num_layers):
        layer = h * (h + 2 * kv) + h * h + 3 * h * f
        specs.append(PieceSpec(f"layers.{i}", lambda i=i: DecoderLayer(config, f"layers.{i}", placement, **common), layer))
    specs.append(PieceSpec("output", lambda: Output(config, placement, **common), config.vocab_size * h))
    return specs


def make_context(config, positions: torch.Tensor, segments: torch.Tensor, dtype: torch.dtype) -> Context:
    """What all layers share in one forward pass, from the fields of a PackedBatch. dtype: of the hidden states."""
    head_dim = config.hidden_size // config.num_attention_heads
    backend = choose_backend(config.attention, positions.device, dtype, head_dim)
    cos, sin = rope_tables(positions, head_dim, config.rope_theta, dtype)
    return Context(Segments.build(segments, backend, dtype), cos, sin)


def run_pieces(pieces: Sequence[nn.Module], x: torch.Tensor, context: Context) -> torch.Tensor:
    """Apply consecutive pieces."""
    for piece in pieces:
        x = piece(x, context)
    return x
