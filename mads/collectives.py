"""Collectives of mads: autograd pairs for tensor, sequence and context parallelism, ragged gathers and verified broadcasts for
the control plane. With topology.py the only place that calls torch.distributed.
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


class _GatherDim(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group, dim):
        ctx.group, ctx.dim = group, dim
        return start_gather(x, group, dim).wait()

    @staticmethod
    def backward(ctx, grad):
        size, rank = dist.get_world_size(ctx.group), dist.get_rank(ctx.group)
        return grad.chunk(size, ctx.dim)[rank].contiguous(), None, None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return start_gather(x, group).wait()

    @staticmethod
    def backward(ctx, grad):
        return start_reduce_scatter(grad, ctx.group).wait(), None


class _ReduceScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return start_reduce_scatter(x, group).wait()

    @staticmethod
    def backward(ctx, grad):
        return start_gather(grad, ctx.group).wait(), None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group, scatter, gather):
        ctx.group, ctx.scatter, ctx.gather = group, scatter, gather
        return _exchange(x, group, scatter, gather)

    @staticmethod
    def backward(ctx, grad):
        return _exchange(grad, ctx.group, ctx.gather, ctx.scatter), None, None, None


def copy_to_group(x: torch.Tensor, group) -> torch.Tensor:
    """Megatron's f: identity forward, all-reduce of the gradient backward."""
    return x if group is None or dist.get_world_size(group) == 1 else _CopyToGroup.apply(x, group)


def reduce_from_group(x: torch.Tensor, group) -> torch.Tensor:
    """Megatron's g: all-reduce forward, identity backward. The input is left unchanged."""
    return x if group is None or dist.get_world_size(group) == 1 else _ReduceFromGroup.apply(x, group)


def gather_dim(x: torch.Tensor, group, dim: int = -1) -> torch.Tensor:
    """Concatenate a dimension over the group forward; keep this rank's slice of the gradient backward. For a result with which
    every rank does the same; where each rank does its own part, the gradients must be summed: `gather_sequence`."""
    return x if group is None or dist.get_world_size(group) == 1 else _GatherDim.apply(x, group, dim % x.dim())


def gather_sequence(x: torch.Tensor, group) -> torch.Tensor:
    """[B, S / t, ...] -> [B, S, ...]: all-gather along the sequence forward, reduce-scatter of the gradient backward
    (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2)."""
    return x if group is None or dist.get_world_size(group) == 1 else _GatherSequence.apply(x, group)


def reduce_scatter_sequence(x: torch.Tensor, group) -> torch.Tensor:
    """[B, S, ...] -> [B, S / t, ...]: sum over the ranks, of which each keeps its positions; all-gather of the gradient backward.

    Raises:
        ValueError: if S is not divisible by the group's size.
    """
    return x if group is None or dist.get_world_size(group) == 1 else _ReduceScatterSequence.apply(x, group)


def all_to_all(x: torch.Tensor, group, scatter: int, gather: int) -> torch.Tensor:
    """Cut dimension `scatter` into one slice for each rank, and concatenate what comes from all ranks, in rank order, along
    dimension `gather`. The gradient takes the way back (Jacobs et al. 2023, arXiv 2309.14509).

    Raises:
        ValueError: if the size along `scatter` is not divisible by the group's size.
    """
    return x if group is None or dist.get_world_size(group) == 1 else _AllToAll.apply(x, group, scatter, gather)


def slice_of(total: int, *groups) -> slice:
    """The part of `total` things that this rank holds when they are cut over each of the groups in turn, the first outermost.

    Raises:
        ValueError: if `total` is not divisible by the product of the groups' sizes.
    """
    sizes = [group_size(group) for group in groups]
    count, index = 1, 0
    for group, size in zip(groups, sizes):
        count, index = count * size, index * size + group_rank(group)
    if total % count:
        raise ValueError(f"{total} positions cannot be cut into {' x '.join(map(str, sizes))} = {count} equal slices")
    return slice(index * total // count, (index + 1) * total // count)


# ---------------------------------------------------------------- collectives under way


class Pending:
    """A collective that may still run. Holds the tensors that it reads and writes for as long."""

    def __init__(self, result: torch.Tensor, work, sent: torch.Tensor | None = None, finish: Callable | None = None):
        self.result, self._work, self._sent, self._finish = result, work, sent, finish

    def wait(self) -> torch.Tensor:
        """The result; on a GPU the current stream waits, not the host."""
        if self._work is not None:
            self._work.wait()
            self._work = self._sent = None
            if self._finish is not None:
                self.result = self._finish(self.result)
        return self.result


def start_all_reduce(x: torch.Tensor, group) -> Pending:
    """Begin to sum a contiguous tensor in place."""
    return Pending(x, dist.all_reduce(x, group=group, async_op=True))


def start_gather(x: torch.Tensor, group, dim: int = 1) -> Pending:
    """Begin to concatenate dimension `dim` over the group."""
    count, x = dist.get_world_size(group), x.contiguous()
    whole = torch.empty(count * x.numel(), dtype=x.dtype, device=x.device)
    work = _newest("all_gather_single", "all_gather_into_tensor")(whole, x.view(-1), group=group, async_op=True)
    return Pending(whole, work, x, lambda whole: whole.view(count, *x.shape).movedim(0, dim).flatten(dim, dim + 1))


def start_reduce_scatter(x: torch.Tensor, group, dim: int = 1) -> Pending:
    """Begin to sum over the group and to keep this rank's slice of dimension `dim`. `result` has its shape already.

    Raises:
        ValueError: if the dimension is not divisible by the group's size.
    """
    pieces = _pieces(x, group, dim)
    mine = torch.empty(pieces.shape[1:], dtype=x.dtype, device=x.device)
    scatter = _newest("reduce_scatter_single", "reduce_scatter_tensor")
    return Pending(mine, scatter(mine.view(-1), pieces.view(-1), group=group, async_op=True), pieces)


def _newest(name: str, name_before: str) -> Callable:
    return getattr(dist, name if hasattr(dist, name) else name_before)  # torch 2.13 renamed them


def _pieces(x: torch.Tensor, group, dim: int) -> torch.Tensor:
    count = dist.get_world_size(group)
    if x.shape[dim] % count:
        raise ValueError(
            f"size {x.shape[dim]} of dimension {dim} of {tuple(x.shape)} is not divisible by the {count} ranks of the group"
        )
    return x.unflatten(dim, (count, -1)).movedim(dim, 0).contiguous()


def _exchange(x: torch.Tensor, group, scatter: int, gather: int) -> torch.Tensor:
    sent = _pieces(x, group, scatter)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received.movedim(0, gather).flatten(gather, gather + 1)


# ---------------------------------------------------------------- plain reductions


def group_size(group) -> int:
    """Number of ranks in a group; None is this rank alone."""
    return 1 if group is None else dist.get_world_size(group)


def backend_of(group) -> str:
    """What carries the group's collectives: "nccl" or "gloo"."""
    return dist.get_backend(group)


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


def gather_tensors(piece: torch.Tensor, group, to: int) -> list[torch.Tensor] | None:
    """The tensors of one shape of all ranks, in rank order, on group rank `to`; None on the others."""
    if group_size(group) == 1:
        return [piece]
    piece = piece.contiguous()
    pieces = [torch.empty_like(piece) for _ in range(group_size(group))] if group_rank(group) == to else None
    dist.gather(piece, pieces, dst=dist.get_global_rank(group, to), group=group)
    return pieces


def start_sum(value: int, group) -> Callable[[], int]:
    """Begin to sum one int over a group on the CPU; returns what waits for the total."""
    if group_size(group) == 1:
        return lambda: value
    total = start_all_reduce(torch.tensor([value], dtype=torch.int64), group)
    return lambda: int(total.wait()[0])


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
