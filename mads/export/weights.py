"""The weights of a checkpoint as the safetensors files of `transformers`, one tensor in memory at a time."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from mads.checkpoint.canonical import weight_index
from mads.checkpoint.manifest import flush
from mads.checkpoint.streamed import ToWrite, write_streamed
from mads.data.schema import DataError
from mads.export.llama import logical_shapes, pieces

INDEX = "model.safetensors.index.json"


def tensors_of(checkpoint: Path, model) -> list[ToWrite]:
    """All tensors under the names of transformers; each reads its rows when it is asked to.

    Args:
        model: the fields of mads.config.schema.ModelConfig.

    Raises:
        DataError: the checkpoint is of another model.
    """
    index, expected = weight_index(checkpoint), logical_shapes(model)
    held = {name: tensor.shape for name, tensor in index.items()}
    for name in sorted(set(held) | set(expected)):
        if held.get(name) != expected.get(name):
            raise DataError(
                f"{checkpoint} has {name} of shape {held.get(name, 'none')}, the model in the run's config.yaml has "
                f"{expected.get(name, 'none')}; the run folder was mixed up"
            )
    return [
        ToWrite(p.theirs, p.shape, functools.partial(index[p.ours].rows, p.start, p.start + p.shape[0])) for p in pieces(model)
    ]


def cut(tensors: Sequence[ToWrite], dtype: torch.dtype, max_bytes: float) -> list[list[ToWrite]]:
    """Consecutive tensors by file, each of at most `max_bytes` unless one tensor alone is larger."""
    files: list[list[ToWrite]] = []
    size = 0
    for tensor in tensors:
        own = tensor.nbytes(dtype)
        if not files or size + own > max_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += own
    return files


def write_weights(folder: Path, tensors: Sequence[ToWrite], dtype: torch.dtype, max_bytes: float) -> list[str]:
    """Write the files, and an index if there are several; their names.

    Raises:
        DataError: a number is not finite, or too large for `dtype`.
    """
    files = cut(tensors, dtype, max_bytes)
    if len(files) == 1:
        write_streamed(folder / "model.safetensors", files[0], dtype)
        return ["model.safetensors"]
    names = [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    for name, own in zip(names, files):
        write_streamed(folder / name, own, dtype)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes(dtype) for tensor in tensors)},
        "weight_map": {tensor.name: name for name, own in zip(names, files) for tensor in own},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    flush(folder / INDEX)
    return [*names, INDEX]
