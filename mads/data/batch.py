"""The packed batch: what the loader, probes, references and evaluation hand to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

IGNORE = -100  # label of a position that has no target


@dataclass(frozen=True)
class PackedBatch:
    """Rows of `seq_length` positions, each a concatenation of samples. No target crosses a sample's boundary.

    tokens: int64 [B, S]; padding positions hold 0
    labels: int64 [B, S]; the next token of the same sample, IGNORE at a sample's last position and in padding
    positions: int64 [B, S]; 0, 1, 2, ... restarting at every sample (for RoPE); 0 in padding
    segments: int64 [B, S]; index of the sample inside the batch (0 .. samples-1, ascending in row-major order), -1 in padding.
        Attention never crosses from one segment to another. They stay on the CPU: where attention may look is planned there.
    samples: number of samples in the batch
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    samples: int
    # The four as one tensor [4, B, S], where they are its rows: one copy moves them. Not a field of a batch made from others.
    _block: torch.Tensor | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def of_block(cls, block: torch.Tensor, samples: int) -> PackedBatch:
        """The batch whose tokens, labels, positions and segments are the rows of an int64 tensor [4, B, S]."""
        batch = cls(*block.unbind(0), samples)
        object.__setattr__(batch, "_block", block)
        return batch

    @property
    def block(self) -> torch.Tensor:
        """int64 [4, B, S]: tokens, labels, positions, segments; a copy where they are no rows of one tensor."""
        if self._block is None:
            return torch.stack([self.tokens, self.labels, self.positions, self.segments])
        return self._block

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch there, its segments here: this one, if it is there. From pinned memory the host does not wait for the
        copy to a GPU."""
        device = torch.device(device)
        if device.type == self.tokens.device.type and device.index in (None, self.tokens.device.index):
            return self
        tokens, labels, positions = self.block[:3].to(device, non_blocking=True)
        return PackedBatch(tokens, labels, positions, self.segments, self.samples)

    def pinned(self, device: torch.device) -> PackedBatch:
        """The same batch in page-locked memory of the host, from which a CUDA device reads while the host goes on."""
        with torch.cuda.device(device):  # a thread begins on device 0, where pinning would make a context
            return PackedBatch.of_block(self.block.pin_memory(), self.samples)

    @property
    def valid_tokens(self) -> int:
        return int((self.labels != IGNORE).sum())


def make_batch(rows: Sequence[Sequence[np.ndarray]], seq_length: int) -> PackedBatch:
    """Lay rows of samples (token arrays of any integer dtype) side by side: PackedBatch of [len(rows), seq_length].

    A row may hold no sample: it is padding throughout.

    Raises:
        ValueError: no row, a sample without tokens, or a row whose samples do not fit seq_length.
    """
    if not rows:
        raise ValueError("a batch needs at least one row")
    samples = [sample for row in rows for sample in row]
    lengths = np.array([len(sample) for sample in samples], dtype=np.int64)
    row_of_sample = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    used = np.bincount(row_of_sample, weights=lengths, minlength=len(rows)).astype(np.int64)
    if used.max() > seq_length or (len(samples) and lengths.min() < 1):
        worst = int(used.argmax())
        raise ValueError(
            f"row {worst} holds {used[worst]} tokens, seq_length is {seq_length}; the shortest sample has {lengths.min()} tokens"
        )
    block = np.zeros((4, len(rows), seq_length), np.int64)
    tokens, labels, positions, segments = block
    labels.fill(IGNORE)
    segments.fill(-1)
    if samples:
        flat = np.concatenate(samples).astype(np.int64)
        filled = np.arange(seq_length) < used[:, None]  # rows fill from the left, so row-major order is the order of `flat`
        ends = np.cumsum(lengths)
        targets = np.roll(flat, -1)
        targets[ends - 1] = IGNORE  # the next token belongs to another sample
        tokens[filled], labels[filled] = flat, targets
        positions[filled] = np.arange(len(flat)) - np.repeat(ends - lengths, lengths)
        segments[filled] = np.repeat(np.arange(len(samples)), lengths)
    return PackedBatch.of_block(torch.from_numpy(block), len(samples))


def sum_by_sample(values: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Sum a per-position value [B, S] over each sample: float64 [samples]. Float64, so that small differences of two losses
    (finite-difference rewards) are not lost in the sum."""
    out = torch.zeros(batch.samples + 1, dtype=torch.float64, device=values.device)  # the last slot takes the padding
    index = torch.where(batch.segments < 0, batch.samples, batch.segments).reshape(-1).to(values.device, non_blocking=True)
    return out.index_add_(0, index, values.reshape(-1).double())[:-1]


def tokens_by_sample(batch: PackedBatch) -> torch.Tensor:
    """Number of targets of each sample: int64 [samples]."""
    return sum_by_sample((batch.labels != IGNORE).double(), batch).long()
