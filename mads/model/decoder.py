"""A LLaMA-family decoder in one module: all pieces on one rank, or on the tensor- and context-parallel ranks of one group."""

from __future__ import annotations

import torch
from torch import nn

from mads.collectives import gather_dim
from mads.model.pieces import Output, make_context, piece_specs, run_pieces
from mads.model.placement import ALONE, Placement
from mads.tensor import Objective


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
        draws: torch.Tensor | None = None,
        objective: Objective | None = None,
        weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of weight * loss over the positions of this rank, loss of every position [B, S]), in float32 (float64 for float64
        parameters). The losses are 0 where the label is -100, and where another context-parallel rank works.

        The sum can be differentiated, once; the losses cannot: logits are never kept (mads.tensor.cross_entropy).

        Args:
            tokens, labels, positions, segments: the fields of mads.data.batch.PackedBatch, int64 [B, S] each, whole on all ranks.
            draws: one key per row, int64 [B], of all dropout in this pass; None = no dropout.
            objective: of each token; None = the plain cross entropy.
            weights: of the losses in the sum, [B, S], whole on all ranks; None = 1.
        """
        *body, output = self._pieces
        hidden = run_pieces(body, tokens, self._context(positions, segments, draws))
        return output.losses(hidden, labels, weights, objective)

    def logits(self, tokens: torch.Tensor, positions: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
        """Logits over the whole vocabulary on every rank, [B, S, vocab_size] in the parameters' dtype."""
        logits = run_pieces(self._pieces, tokens, self._context(positions, segments))
        whole = gather_dim(logits, self.placement.tp)[..., : self.config.vocab_size]
        return gather_dim(whole, self.placement.cp, 1)

    def _context(self, positions, segments, draws=None):
        return make_context(self.config, self.placement, positions, segments, draws, self.embedding.weight.dtype)
