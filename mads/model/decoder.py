"""A LLaMA-family decoder in one module: all pieces on one rank (or one tensor-parallel group)."""

from __future__ import annotations

import torch
from torch import nn

from mads.collectives import gather_last_dim
from mads.model.pieces import Output, make_context, piece_specs, run_pieces
from mads.model.placement import ALONE, Placement
from mads.tensor import vocab_parallel_cross_entropy


class Decoder(nn.Module):
    """The whole model.

    Args:
        config: the fields of mads.config.schema.ModelConfig.
        placement: how it is cut over ranks.
        seed: of the start weights, which are the same for every parallel size.
        device, dtype: of the parameters. On the meta device nothing is drawn.

    Raises:
        ValueError: if the sizes do not fit each other or the group's size.
    """

    def __init__(self, config, placement: Placement = ALONE, seed: int = 0, device=None, dtype: torch.dtype = torch.float32):
        super().__init__()
        common = dict(placement=placement, seed=seed, device=device, dtype=dtype)
        self.config, self.placement = config, placement
        first, *middle, _ = piece_specs(config, **common)
        entry = first.build()
        layers = nn.ModuleList(spec.build() for spec in middle)
        exit_ = Output(config, tied=entry.embedding.weight if config.tie_embeddings else None, **common)
        self._pieces = (entry, *layers, exit_)  # a tuple, so that modules are registered under the logical names below
        self.embedding, self.layers, self.norm, self.head = entry.embedding, layers, exit_.norm, exit_.head

    def forward(
        self,
        tokens: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor,
        segments: torch.Tensor,
        draws=None,
        objective=None,
    ) -> torch.Tensor:
        """Loss of every position, [B, S] in float32 (float64 for float64 parameters); 0 where the label is -100.

        The arguments are the fields of mads.data.batch.PackedBatch, int64 [B, S] each.
        """
        logits = self._logits(tokens, positions, segments)
        return vocab_parallel_cross_entropy(logits, labels, self.config.vocab_size, self.placement.tp)

    def logits(self, tokens: torch.Tensor, positions: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        """Logits over the whole vocabulary on every rank, [B, S, vocab_size] in the parameters' dtype."""
        return gather_last_dim(self._logits(tokens, positions, segments), self.placement.tp)[..., : self.config.vocab_size]

    def _logits(self, tokens: torch.Tensor, positions: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        dtype = self.embedding.weight.dtype
        return run_pieces(self._pieces, tokens, make_context(self.config, self.placement, positions, segments, None, dtype))
