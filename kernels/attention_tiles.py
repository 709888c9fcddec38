"""Causal attention inside the samples of packed rows on a CPU, without a mask over whole rows: tiles of queries, each against the
keys that it may see and few others.

PyTorch's fused CPU kernel computes every score that it is given, masked or not, and under is_causal it leaves out keys in blocks
of 512 only. Its time is that of its matrix products, so scores that are not computed are time saved. A tile is a run of queries
with one range of keys that ends where the queries end:

    one document, short      queries = keys = the document                      is_causal
    one document, long       64 queries at a time, keys from its first token    causal towards the lower right corner
    one document, very long  queries = keys = the document                      is_causal
    several short documents  queries = keys = all of them                       a small mask
    a slice of all rows      the same positions of every row                    a small mask for each row

Tiles of one shape at equal distances are one call. Which tiles a batch gets follows from its segment ids alone, so that the same
batch gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

# Measured on one core (benchmarks/attention.md), in scores of one head, forward and backward together. Only the choice between
# plans rests on them, and it changes little if they are off by two.
CALL = 2000  # a call of the kernel beside its scores
NARROW = 32  # fewer queries, or fewer keys, cost as much as so many
SIZES = (64, 128)  # queries of a tile: fewer compute fewer scores, more need fewer calls
LONG = 4096  # a document of so many tokens is one call under is_causal: what the kernel computes too much is little by then


@dataclass(frozen=True)
class Tiles:
    """`count` tiles of one shape. Positions are those of the flattened batch.

    end: behind the last query of the first tile, which is its last key too
    stride: from one tile to the next; at least `keys`, so that no two share a key
    queries, keys: of each tile
    several: whether a tile may hold more than one segment
    bias: [count or 1, 1, queries, keys], 0 where attention is allowed and -inf elsewhere; None: causal, and queries = keys
    """

    end: int
    stride: int
    count: int
    queries: int
    keys: int
    several: bool
    bias: torch.Tensor | None = None

    @property
    def cost(self) -> int:
        scores = self.count * max(self.queries, NARROW) * max(self.keys, NARROW)
        return CALL + (scores // 2 if self.queries >= LONG else scores)

    def view(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """The last `length` positions of each tile: [T, heads, D] -> [count, heads, length, D], a view."""
        position, head, channel = x.stride()
        shape, stride = (self.count, x.shape[1], length, x.shape[2]), (self.stride * position, head, position, channel)
        return x.as_strided(shape, stride, x.storage_offset() + (self.end - length) * position)


@dataclass(frozen=True)
class Plan:
    """All tiles of a batch: every position of a document is a query in one of them.

    gaps: whether padding is in none of them
    """

    tiles: tuple[Tiles, ...]
    gaps: bool

    @property
    def cost(self) -> int:
        return sum(tiles.cost for tiles in self.tiles)


def plan_tiles(ids: torch.Tensor, dtype: torch.dtype) -> Plan:
    """The cheapest plan for segment ids, int64 [B, S] on the CPU (-1 = padding), with biases in `dtype`."""
    rows = ids.numpy()
    starts, ends = segment_borders(rows)
    plans = [plan(rows, starts, ends, size) for size in SIZES for plan in (by_document, by_row)]
    best = min(plans, key=lambda plan: plan.cost)
    return with_biases(best, rows.reshape(-1), dtype)


def segment_borders(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions where the segments, and the runs of padding, of each row start and end."""
    new = np.ones(rows.shape, dtype=bool)  # every row starts anew, also where padding meets padding
    new[:, 1:] = rows[:, 1:] != rows[:, :-1]
    starts = np.flatnonzero(new)
    return starts, np.append(starts[1:], rows.size)


def by_document(rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, size: int) -> Plan:
    """Tiles of at most 3 / 2 `size` queries of one document, or of several that have `size` tokens together."""
    real = rows.reshape(-1)[starts] >= 0
    ends_by_shape: dict[tuple[int, int, bool], list[int]] = {}
    for start, end, several in _runs(zip(starts[real].tolist(), ends[real].tolist()), size):
        for first, last in [(start, end)] if several or end - start >= LONG else _cuts(start, end, size):
            ends_by_shape.setdefault((last - first, last - start, several), []).append(last)
    tiles = (tiles for shape, at in ends_by_shape.items() for tiles in _at_equal_distances(at, *shape))
    return Plan(tuple(tiles), gaps=not real.all())


def by_row(rows: np.ndarray, starts: np.ndarray, ends: np.ndarray, size: int) -> Plan:
    """The same slice of all rows as one call: few calls where there are many short documents."""
    count, length = rows.shape
    first = np.repeat(starts, ends - starts).reshape(rows.shape) - np.arange(count)[:, None] * length  # in the row
    tiles = []
    for start, end in _cuts(0, length, size):
        begin = np.where(rows[:, start] < 0, start, first[:, start]).min()  # padding need not see padding before the slice
        tiles.append(Tiles(end, length, count, end - start, end - int(begin), several=True))
    return Plan(tuple(tiles), gaps=False)


def _runs(documents: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether there are several) of documents that follow each other and have at most `size` tokens together."""
    start, end, several = 0, 0, False
    for first, last in documents:
        if start < end == first and last - start <= size:
            end, several = last, True
            continue
        if start < end:
            yield start, end, several
        start, end, several = first, last, False
    if start < end:
        yield start, end, several


def _cuts(start: int, end: int, size: int) -> list[tuple[int, int]]:
    """Consecutive ranges of `size` positions; the first takes what is left over, size / 2 to 3 / 2 size."""
    count = max(1, (end - start + size // 2) // size)
    borders = [start, *(end - size * i for i in range(count - 1, -1, -1))]
    return list(zip(borders, borders[1:]))


def _at_equal_distances(ends: list[int], queries: int, keys: int, several: bool) -> Iterator[Tiles]:
    """Tiles of one shape, in as few calls as their places allow from left to right."""
    at = 0
    while at < len(ends):
        stride = ends[at + 1] - ends[at] if at + 1 < len(ends) else keys
        stop = at + 1
        while stop < len(ends) and ends[stop] - ends[stop - 1] == stride:
            stop += 1
        yield Tiles(ends[at], stride, stop - at, queries, keys, several)
        at = stop


def with_biases(plan: Plan, ids: np.ndarray, dtype: torch.dtype) -> Plan:
    """The plan with the masks that its tiles need. Tiles of one document share one, which is causal towards the lower right
    corner: fewer keys take its last columns."""
    causal: dict[int, torch.Tensor] = {}
    for tiles in sorted(plan.tiles, key=lambda tiles: -tiles.keys):
        if not tiles.several and tiles.keys > tiles.queries and tiles.queries not in causal:
            causal[tiles.queries] = _additive(_causal(tiles), dtype)
    return replace(plan, tiles=tuple(_with_bias(tiles, ids, causal.get(tiles.queries), dtype) for tiles in plan.tiles))


def _with_bias(tiles: Tiles, ids: np.ndarray, causal: torch.Tensor | None, dtype: torch.dtype) -> Tiles:
    if tiles.several:
        last = tiles.end + tiles.stride * np.arange(tiles.count)[:, None]
        segment = ids[last + np.arange(-tiles.keys, 0)]
        seen = _causal(tiles) & (segment[:, -tiles.queries :, None] == segment[:, None, :])
        return replace(tiles, bias=_additive(seen, dtype))
    return tiles if tiles.keys == tiles.queries else replace(tiles, bias=causal[..., -tiles.keys :])


def _causal(tiles: Tiles) -> np.ndarray:
    """bool [1, queries, keys]: the last query sees all keys, the one before all but one."""
    return np.tri(tiles.queries, tiles.keys, tiles.keys - tiles.queries, dtype=bool)[None]


def _additive(seen: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """[n, queries, keys] -> [n, 1, queries, keys]."""
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(torch.from_numpy(~seen), -torch.inf).unsqueeze(1)


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _TiledAttention(torch.autograd.Function):
    """The kernel's own forward and backward for each tile, so that gradients are added up in one buffer: slices that autograd
    knows would each send back zeros of the whole batch."""

    @staticmethod
    def forward(ctx, q, k, v, plan):
        out = q.new_zeros(q.shape) if plan.gaps else q.new_empty(q.shape)
        sums = []
        for t in plan.tiles:
            queries, keys, values = t.view(q, t.queries), t.view(k, t.keys), t.view(v, t.keys)
            part, log_sum_exp = _forward(queries, keys, values, 0.0, t.bias is None, attn_mask=t.bias)
            t.view(out, t.queries).copy_(part)
            sums.append(log_sum_exp)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx, upstream):
        q, k, v, out, *sums = ctx.saved_tensors
        upstream = upstream.contiguous()
        dq = torch.zeros_like(out) if ctx.plan.gaps else torch.empty_like(out)
        dk, dv = k.new_zeros(k.shape), v.new_zeros(v.shape)
        for t, log_sum_exp in zip(ctx.plan.tiles, sums):
            queries, keys, values = t.view(q, t.queries), t.view(k, t.keys), t.view(v, t.keys)
            ours, delta = t.view(out, t.queries), t.view(upstream, t.queries)
            parts = _backward(delta, queries, keys, values, ours, log_sum_exp, 0.0, t.bias is None, attn_mask=t.bias)
            t.view(dq, t.queries).copy_(parts[0])
            t.view(dk, t.keys).add_(parts[1])
            t.view(dv, t.keys).add_(parts[2])
        return dq, dk, dv, None


def tiled_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v, causal and inside each segment; 0 or another finite value at padding.

    Shapes: q [B, S, H, D]; k, v [B, S, KV, D] -> [B, S, H, D].
    """
    return _TiledAttention.apply(*(x.flatten(0, 1) for x in (q, k, v)), plan).view(q.shape)
