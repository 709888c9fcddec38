"""Logical tensors, whole in files and cut over ranks: which rank writes which, how it gets them, how a rank reads its piece."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mads import collectives
from mads.checkpoint.manifest import unwritten
from mads.layout import Layout, is_copy, layout_of, unshard

KEYS = ("weight", "exp_avg", "exp_avg_sq")
Item = tuple[str, str]  # key, logical name


def local_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Shape of this rank's tensor-parallel shard, whole over ZeRO 3."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def logical_shapes(engine) -> dict[str, tuple[int, ...]]:
    """Logical name -> shape, without padding, of all parameters of the model, other stages' too."""
    return {name: tuple(shape) for name, shape in engine.logical_shapes.items()}


def deal(items: dict[Item, int], writers: list[int]) -> dict[Item, int]:
    """Item -> the rank that writes it: the largest first, each to the rank that has least so far. Equal on all ranks."""
    load = dict.fromkeys(writers, 0)
    owner = {}
    for item in sorted(items, key=lambda i: (-items[i], i)):
        owner[item] = min(load, key=lambda rank: (load[rank], rank))
        load[owner[item]] += items[item]
    return owner


def stage_items(engine) -> dict[Item, int]:
    """Item -> number of elements, of what this pipeline stage saves: a tied copy is saved by the stage that has the original."""
    shapes = logical_shapes(engine)
    names = [name for name, parameter in engine.parameters if not is_copy(parameter)]
    return {(key, name): torch.Size(shapes[name]).numel() for key in KEYS for name in names}


def gather_pieces(engine, topology, parameter: torch.nn.Parameter, key: str, owner: int) -> list[torch.Tensor] | None:
    """The shards of all tensor-parallel ranks on rank `owner`; of a replicated parameter its own. None on other ranks.
    Collective over the pipeline stage."""
    piece = engine.state.full(parameter, key)
    place = topology.grid.coordinates(owner)
    if any(place[axis] != topology.coordinate(axis) for axis in ("dp", "cp")):
        return None  # the owner's tensor-parallel group has all pieces
    if layout_of(parameter).sharded:
        return collectives.gather_tensors(piece, topology.group("tp"), place["tp"])
    return [piece] if topology.rank == owner else None


def assemble(pieces: list[torch.Tensor], layout: Layout) -> torch.Tensor:
    """The logical tensor without padding, float32, in CPU memory of its own: later steps leave it alone."""
    whole = unshard(pieces, layout)
    if layout.padded_from is not None:
        whole = whole.narrow(layout.axis, 0, layout.padded_from)
    return whole.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)


def read_piece(stored, layout: Layout, shape: tuple[int, ...], index: int, count: int) -> torch.Tensor:
    """Shard `index` of `count` of a tensor in a file, [*shape]; nothing else of it is read. Rows of padding are 0.

    Args:
        stored: a slice of safetensors, of the logical tensor.
        shape: of the shard.
    """
    if not layout.sharded or (count == 1 and layout.padded_from is None):
        return stored[:]
    axis, held = layout.axis, stored.get_shape()[layout.axis]
    pieces, start = [], 0
    for size in layout.parts or (shape[axis] * count,):
        local = size // count
        first = start + index * local
        last = min(first + local, held)
        if first < last:
            pieces.append(stored[(slice(None),) * axis + (slice(first, last),)])
        start += size
    missing = shape[axis] - sum(p.shape[axis] for p in pieces)
    if missing:
        pieces.append(torch.zeros([*shape[:axis], missing, *shape[axis + 1 :]]))
    return torch.cat(pieces, axis).contiguous()


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write float32 CPU tensors as a safetensors file, on disk when this returns; its size and SHA-256.

    The file is laid out here, because the library makes a second copy of all tensors in memory, holds up other threads
    meanwhile, and the hash would need all of it to be read back.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise TypeError(f"{name} is {tensor.dtype} on {tensor.device}; files hold float32")
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    pieces = (tensor.contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in tensors.values())
    return write_pieces(path, [len(raw).to_bytes(8, "little"), raw], pieces)


def write_pieces(path: Path, *groups: Iterable[Any]) -> dict[str, Any]:
    """Write buffers one after another, flush them to disk, and tell size and SHA-256.

    Raises:
        OSError: that names the file and how far it came.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "wb") as file:
            for pieces in groups:
                for piece in pieces:
                    digest.update(piece)  # both let go of the interpreter lock while they work
                    file.write(piece)
                    size += len(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritten(error, path, size) from error
    return {"bytes": size, "sha256": digest.hexdigest()}
