"""Checksums of tensors, exact to the bit: what must be equal on several ranks is compared by them, and what must come back as it
was."""

from __future__ import annotations

from collections.abc import Iterable

import torch

PART = 1 << 22  # elements that are widened to 64 bits at a time: a copy of an embedding would not fit beside the model


def fold(piece: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Fold a tensor's bits into an int64 scalar on its device (arithmetic wraps).

    Elements are weighted by their place, so that a swap shows. A single element that changes always shows: the change of its bits
    times its place in the part is not 0 modulo 2^64.
    """
    bits = piece.detach().reshape(-1).view(torch.int32 if piece.element_size() == 4 else torch.int16)
    places = torch.arange(1, min(PART, bits.numel()) + 1, device=bits.device)
    for part in bits.split(PART):
        total = total * 1_000_003 + (part * places[: part.numel()]).sum()
    return total


def checksums(pieces: Iterable[torch.Tensor], device: torch.device) -> list[int]:
    """The checksum of each tensor; they come from the device together."""
    zero = torch.zeros((), dtype=torch.int64, device=device)
    sums = [fold(piece, zero) for piece in pieces]
    return torch.stack(sums).tolist() if sums else []
