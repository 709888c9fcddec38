"""A decoder as a list of pieces, which one module runs from end to end or pipeline stages share among them.

A piece is called as piece(x, context) -> x. The first turns tokens into hidden states, the last hidden states into logits.
Logical parameter names do not depend on who holds a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from mads.collectives import group_rank, group_size
from mads.kernels.packed_attention import Segments, choose_backend
from mads.model.layers import Context, DecoderLayer
from mads.model.placement import Placement
from mads.model.rope import rope_tables
from mads.model.shape import check_model_config, layer_matrices
from mads.tensor import PLAIN, Objective, RMSNorm, Targets, VocabParallelEmbedding, VocabParallelHead
from mads.tensor.dropout import Draws, hidden_dropout


class Input(nn.Module):
    """tokens int64 [B, S], whole on every rank -> hidden states [B, positions of this rank, hidden]."""

    def __init__(self, config, placement: Placement, **common):
        super().__init__()
        common = common | placement.for_layers
        self.embedding = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, name="embedding", std=config.init_std, **common
        )
        self.placement, self.dropout = placement, config.hidden_dropout

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        hidden = self.embedding(local_positions(x, self.placement))
        return hidden_dropout(hidden, self.dropout, context.draws, "embedding")


class Output(nn.Module):
    """Hidden states [B, positions of this rank, hidden] -> this rank's slice of the logits [B, S / cp, padded vocabulary / t].

    Args:
        tied: the embedding's Parameter, where this rank holds it; else a tied head makes a copy of it.
    """

    def __init__(self, config, placement: Placement, tied: nn.Parameter | None = None, **common):
        super().__init__()
        self.placement = placement
        common = common | placement.for_layers
        h, vocab = config.hidden_size, config.vocab_size
        norm = {k: v for k, v in common.items() if k != "seed"} | {"eps": config.norm_eps}
        self.norm = RMSNorm(h, name="norm", **norm)
        if config.tie_embeddings and tied is None:
            self.head = VocabParallelHead(h, vocab, name="embedding", std=config.init_std, copy=True, **common)
        else:
            self.head = VocabParallelHead(h, vocab, name="head", std=config.init_std, tied=tied, **common)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        return self.head(self.norm(x))

    def losses(
        self,
        x: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor | None = None,
        objective: Objective | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states -> (sum of weight * loss over this rank's positions, losses [B, S]) without logits in memory. Losses
        are 0 where the label is -100 or another context-parallel rank works. The sum can be differentiated, once; they cannot.

        Args:
            labels: int64 [B, S], whole on every rank.
            weights: [B, S], whole on every rank; None = 1.
        """
        where, total = self.placement.positions(labels.shape[1]), labels.shape[1]
        own = None if weights is None else weights[:, where]
        summed, losses = self.head(self.norm(x), Targets(labels[:, where], own, objective or PLAIN))
        return summed, losses if losses.shape[1] == total else F.pad(losses, (where.start, total - where.stop))


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
    check_model_config(config, group_size(placement.tp), group_size(placement.cp))
    h = config.hidden_size
    vocabulary, matrices = config.vocab_size * h, layer_matrices(config)
    specs = [PieceSpec("embedding", lambda: Input(config, placement, **common), 0, vocabulary)]
    for i in range(config.num_layers):
        build = lambda i=i: DecoderLayer(config, f"layers.{i}", placement, **common)
        specs.append(PieceSpec(f"layers.{i}", build, matrices, matrices + 2 * h))
    head = h + (0 if config.tie_embeddings else vocabulary)
    specs.append(PieceSpec("output", lambda: Output(config, placement, **common), vocabulary, head))
    return specs


@cache  # asked in every forward, and looking for flash-attn reads the file system
def _backend(choice: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    return choose_backend(choice, device, dtype, head_dim)


def local_positions(x: torch.Tensor, placement: Placement) -> torch.Tensor:
    """[B, S, ...] -> [B, S / cp, ...]: the positions of each row that this context-parallel rank works on."""
    return x[:, placement.positions(x.shape[1])]


def make_context(
    config,
    placement: Placement,
    positions: torch.Tensor,
    segments: torch.Tensor,
    draws: torch.Tensor | None,
    dtype: torch.dtype,
) -> Context:
    """What all layers share in one forward pass.

    Args:
        positions, segments: the fields of a PackedBatch, int64 [B, S], whole on every rank. Attention sees the segments of whole
            rows; RoPE turns the positions that this rank works on. Segments are best on the CPU, for their values are read.
        draws: one key per row, int64 [B], of all dropout in this pass; None = no dropout. Keep it on the CPU, for its values are
            read.
        dtype: of the hidden states.

    Raises:
        ValueError: if the rows cannot be cut equally over the ranks that share them.
    """
    total, head_dim = positions.shape[1], config.hidden_size // config.num_attention_heads
    where = placement.hidden_positions(total)
    backend = _backend(config.attention, positions.device, dtype, head_dim)
    cos, sin = rope_tables(local_positions(positions, placement), head_dim, config.rope_theta, dtype)
    if draws is not None:
        draws = Draws(tuple(draws.tolist()), total, where, (group_rank(placement.tp), group_rank(placement.cp)))
    dropout = draws is not None and config.attention_dropout > 0
    return Context(Segments.build(segments, backend, dtype, positions.device, dropout), cos, sin, draws)


def run_pieces(pieces: Sequence[nn.Module], x: torch.Tensor, context: Context) -> torch.Tensor:
    """Apply consecutive pieces."""
    for piece in pieces:
        x = piece(x, context)
    return x
