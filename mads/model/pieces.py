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
from mads.tensor import RMSNorm, VocabParallelEmbedding, VocabParallelHead, vocab_parallel_cross_entropy


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
    """A piece before it is built.

    cost: weights that a token is multiplied by; parameters: weights that it holds (a tied head none). Stages are balanced by one
    of them.
    """

    name: str
    build: Callable[[], nn.Module]
    cost: int
    parameters: int

    def weight(self, balance: str) -> float:
        """Its share of a stage: flops | parameters | layers (a block is one, the embedding and the head none)."""
        if balance == "layers":
            return 1.0 if self.name.startswith("layers.") else 0.0
        return float({"flops": self.cost, "parameters": self.parameters}[balance])


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
    vocabulary = config.vocab_size * h
    specs = [PieceSpec("embedding", lambda: Input(config, placement, **common), 0, vocabulary)]
    matrices = h * (h + 2 * kv) + h * h + 3 * h * f
    for i in range(config.num_layers):
        build = lambda i=i: DecoderLayer(config, f"layers.{i}", placement, **common)
        specs.append(PieceSpec(f"layers.{i}", build, matrices, matrices + 2 * h))
    head = h + (0 if config.tie_embeddings else vocabulary)
    specs.append(PieceSpec("output", lambda: Output(config, placement, **common), vocabulary, head))
    return specs


def local_positions(x: torch.Tensor, placement: Placement) -> torch.Tensor:
    return x


def token_losses(config, placement: Placement, logits: torch.Tensor, labels: torch.Tensor, objective) -> torch.Tensor:
    return vocab_parallel_cross_entropy(logits, labels, config.vocab_size, placement.tp)


def make_context(config, placement, positions: torch.Tensor, segments: torch.Tensor, draws, dtype: torch.dtype) -> Context:
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
