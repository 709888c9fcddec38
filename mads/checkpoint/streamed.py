"""safetensors files of other layouts than checkpoints', read by rows and written tensor by tensor: a model larger than the memory
passes through."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mads.checkpoint.tensors import write_pieces
from mads.data.schema import DataError

CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # of the format


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # as the format calls it

    def part(self, index: tuple[slice, ...]) -> torch.Tensor:
        """A slice of it along its first dimensions; nothing else is read."""
        with safe_open(os.fspath(self.file), framework="pt") as f:
            return f.get_slice(self.name)[index]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop)."""
        return self.part((slice(start, stop),))


def stored_tensors(file: Path) -> list[Stored]:
    """What a file holds; its header is read.

    Raises:
        DataError: it is no whole safetensors file.
    """
    try:
        with safe_open(os.fspath(file), framework="pt") as f:
            slices = {name: f.get_slice(name) for name in f.keys()}
            return [Stored(file, name, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()]
    except SafetensorError as error:
        raise DataError(f"{file} is no whole safetensors file ({error})") from error


@dataclass(frozen=True)
class ToWrite:
    """A tensor that `read` gives, in any dtype, when its turn comes."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    def nbytes(self, dtype: torch.dtype) -> int:
        return torch.Size(self.shape).numel() * dtype.itemsize


def write_streamed(path: Path, tensors: Sequence[ToWrite], dtype: torch.dtype) -> dict[str, Any]:
    """Write a safetensors file as `transformers` does, on disk when this returns; one tensor at a time is in memory.

    Returns: its size and SHA-256.

    Raises:
        DataError: a number is not finite, or not in `dtype`.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        size = tensor.nbytes(dtype)
        header[tensor.name] = {"dtype": CODES[dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return write_pieces(path, [len(raw).to_bytes(8, "little"), raw], (_bytes_of(tensor, dtype) for tensor in tensors))


def _bytes_of(tensor: ToWrite, dtype: torch.dtype):
    value = tensor.read()
    if tuple(value.shape) != tensor.shape:
        raise DataError(f"{tensor.name} has shape {tuple(value.shape)}, not {tensor.shape}")
    if not value.isfinite().all():
        raise DataError(f"{tensor.name} has numbers that are not finite: the run has diverged; take an earlier checkpoint")
    cast = value.to(dtype)
    if not cast.isfinite().all():
        raise DataError(
            f"{tensor.name} has numbers up to {value.abs().max():.4g}, more than {dtype} holds; use bfloat16 or float32"
        )
    return cast.contiguous().reshape(-1).view(torch.uint8).numpy()
