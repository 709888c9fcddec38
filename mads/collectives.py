"""Collectives of mads: autograd pairs for tensor and sequence parallelism, ragged gathers and verified broadcasts for the
control plane. With topology.py the only place that calls torch.distributed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


class ReplicaMismatchError(RuntimeError):
    """Ranks that must hold the same value do not. The message names the ranks."""


# ---------------------------------------------------------------- autograd pairs (Megatron's f and g, and their kin)


class _CopyToGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _ReduceFromGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        x = x.contiguous().clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _GatherLastDim(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        pieces = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(pieces, x.contiguous(), group=group)
        return torch.cat(pieces, -1)

    @staticmethod
    def backward(ctx, grad):
        size, rank = dist.get_world_size(ctx.group), dist.get_rank(ctx.group)
        return grad.chunk(size, -1)[rank].contiguous(), None


def copy_to_group(x: torch.Tensor, group) -> torch.Tensor:
    """Megatron's f: identity forward, all-reduce of the gradient backward."""
    return x if group is None or dist.get_world_size(group) == 1 else _CopyToGroup.apply(x, group)


def reduce_from_group(x: torch.Tensor, group) -> torch.Tensor:
    """Megatron's g: all-reduce forward, identity backward. The input is left unchanged."""
    return x if group is None or dist.get_world_size(group) == 1 else _ReduceFromGroup.apply(x, group)


def gather_last_dim(x: torch.Tensor, group) -> torch.Tensor:
    """Concatenate the last dimension over the group forward; keep this rank's slice of the gradient backward."""
    return x if group is None or dist.get_world_size(group) == 1 else _GatherLastDim.apply(x, group)


# ---------------------------------------------------------------- plain reductions


def group_size(group) -> int:
    """Number of ranks in a group; None is this rank alone."""
    return 1 if group is None else dist.get_world_size(group)


def group_rank(group) -> int:
    """This rank's place in a group; 0 when it is alone."""
    return 0 if group is None else dist.get_rank(group)


def all_reduce_(tensor: torch.Tensor, group, op: str = "sum") -> torch.Tensor:
    """In-place all-reduce; op is one of sum, max, min. Returns the tensor."""
    if group_size(group) > 1:
        dist.all_reduce(
            tensor, op={"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}[op], group=group
        )
    return tensor


def all_gather_flat(piece: torch.Tensor, group) -> torch.Tensor:
    """Concatenate equally long one-dimensional tensors in rank order."""
    if group_size(group) == 1:
        return piece
    whole = torch.empty(piece.numel() * group_size(group), dtype=piece.dtype, device=piece.device)
    dist.all_gather(list(whole.chunk(group_size(group))), piece.contiguous(), group=group)
    return whole


def barrier(group) -> None:
    """Wait until every rank of the group is here."""
    if group_size(group) > 1:
        dist.barrier(group=group)


def send(tensor: torch.Tensor, to: int, group) -> None:
    """Send to rank `to` of the group, which must call `receive`."""
    dist.send(tensor.contiguous(), dst=dist.get_global_rank(group, to), group=group)


def receive(shape, dtype: torch.dtype, device, source: int, group) -> torch.Tensor:
    """A new tensor of that shape from rank `source` of the group."""
    tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
    dist.recv(tensor, src=dist.get_global_rank(group, source), group=group)
    return tensor


# ---------------------------------------------------------------- control plane: CPU tensors on the gloo control group


def ragged_all_gather(array: np.ndarray, group) -> list[np.ndarray]:
    """Gather arrays whose first dimension differs between ranks. Returns one array per rank, in rank order, on every rank.

    The dtype and the trailing shape must be equal on all ranks (an absent contribution is an array of length 0).
    """
    array = np.ascontiguousarray(array)
    if group_size(group) == 1:
        return [array.copy()]
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(group_size(group))]
    dist.all_gather(lengths, torch.tensor([array.shape[0]], dtype=torch.int64), group=group)
    longest = max(int(n) for n in lengths)
    row_bytes = int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
    # Bytes, not numbers: gloo then moves any dtype unchanged, NaN payloads included.
    mine = torch.zeros(longest * row_bytes, dtype=torch.uint8)
    mine[: array.nbytes] = torch.from_numpy(array.reshape(-1).view(np.uint8).copy())
    pieces = [torch.empty_like(mine) for _ in lengths]
    dist.all_gather(pieces, mine, group=group)
    result = []
    for piece, n in zip(pieces, lengths):
        data = piece.numpy()[: int(n) * row_bytes].view(array.dtype)
        result.append(data.reshape((int(n),) + array.shape[1:]).copy())
    return result


def broadcast_array(array: np.ndarray | None, group, dtype, src: int = 0) -> np.ndarray:
    """Send a one-dimensional array of known dtype, but unknown length, from group rank `src` to the group."""
    dtype = np.dtype(dtype)
    if group_size(group) == 1:
        return np.ascontiguousarray(array, dtype=dtype)
    source = dist.get_global_rank(group, src)
    is_source = group_rank(group) == src
    length = torch.tensor([len(array) if is_source else 0], dtype=torch.int64)
    dist.broadcast(length, src=source, group=group)
    if is_source:
        data = torch.from_numpy(np.ascontiguousarray(array, dtype=dtype).view(np.uint8).copy())
    else:
        data = torch.empty(int(length) * dtype.itemsize, dtype=torch.uint8)
    if int(length):
        dist.broadcast(data, src=source, group=group)
    return data.numpy().view(dtype).copy()


def stream_to_first(array: np.ndarray, group, write: Callable[[np.ndarray], None], chunk_bytes: int = 1 << 24) -> None:
    """Send every rank's one-dimensional array to group rank 0, in rank order and in chunks, so that nobody holds more than its
    own.

    Args:
        write: called on group rank 0 with each chunk; it must not raise, for the others would wait for it.
    """
    array = np.ascontiguousarray(array)
    rows = max(1, chunk_bytes // array.dtype.itemsize)

    def chunks(length: int):
        return (slice(start, min(start + rows, length)) for start in range(0, length, rows))

    if group_rank(group) == 0:
        for where in chunks(len(array)):
            write(array[where])
    if group_size(group) == 1:
        return
    lengths = [int(n[0]) for n in ragged_all_gather(np.array([len(array)]), group)]
    first = dist.get_global_rank(group, 0)
    if group_rank(group) != 0:
        for where in chunks(len(array)):
            dist.send(torch.from_numpy(array[where].view(np.uint8).copy()), dst=first, group=group)
        return
    for rank in range(1, len(lengths)):
        for where in chunks(lengths[rank]):
            data = torch.empty((where.stop - where.start) * array.dtype.itemsize, dtype=torch.uint8)
            dist.recv(data, src=dist.get_global_rank(group, rank), group=group)
            write(data.numpy().view(array.dtype))


def gather_to_first(array: np.ndarray, group) -> np.ndarray | None:
    """All ranks' one-dimensional arrays of one dtype, joined in rank order, on group rank 0; None elsewhere."""
    pieces: list[np.ndarray] = []
    stream_to_first(array, group, pieces.append)
    return np.concatenate([np.zeros(0, array.dtype), *pieces]) if group_rank(group) == 0 else None


def broadcast_json(value: Any, group, src: int = 0) -> Any:
    """Send a JSON value from group rank `src` to the group (JSON, so that nothing is unpickled)."""
    raw = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8) if group_rank(group) == src else None
    return json.loads(broadcast_array(raw, group, np.uint8, src).tobytes().decode())


def all_gather_json(value: Any, group) -> list[Any]:
    """Gather one JSON value per rank, in rank order, on every rank."""
    raw = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
    return [json.loads(piece.tobytes().decode()) for piece in ragged_all_gather(raw, group)]


def assert_equal_on_ranks(value: Any, group, what: str) -> None:
    """Raise on every rank if a JSON value differs between ranks.

    Raises:
        ReplicaMismatchError: naming `what`, the values and the ranks that hold each.
    """
    values = all_gather_json(value, group)
    if any(v != values[0] for v in values):
        holders: dict[str, list[int]] = {}
        for rank, v in enumerate(values):
            holders.setdefault(json.dumps(v), []).append(rank)
        listing = "; ".join(f"ranks {ranks}: {v[:200]}" for v, ranks in holders.items())
        raise ReplicaMismatchError(f"{what} differs between ranks: {listing}")


def digest(*parts: bytes | np.ndarray | str | int) -> int:
    """A 63-bit BLAKE2b digest of the parts, as a non-negative int64 value."""
    h = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part).tobytes()
        elif not isinstance(part, bytes):
            part = str(part).encode()
        h.update(len(part).to_bytes(8, "little"))
        h.update(part)
    return int.from_bytes(h.digest(), "little") >> 1
