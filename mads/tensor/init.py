"""Parameters of tensor-parallel layers: shapes, layout marks, and start values that do not depend on the parallel size.

Each tensor is drawn whole from a generator of its own, seeded by (seed, logical name), and sliced afterwards. So the model is
the same for every tensor-parallel size, shards are never copies of each other, and adding a parameter changes no other.
"""

from __future__ import annotations

import torch
from torch import nn

from mads.collectives import digest, group_rank, group_size
from mads.layout import Layout, mark, shard


def local_size(size: int, count: int, what: str) -> int:
    """size / count.

    Raises:
        ValueError: naming `what` and both numbers, if the quotient is not whole.
    """
    if size % count:
        raise ValueError(
            f"{what} = {size} is not divisible by the tensor-parallel size {count}; "
            f"choose a tensor-parallel size that divides {size}, or another {what}"
        )
    return size // count


def padded_vocab_size(vocab_size: int, count: int) -> int:
    """The smallest multiple of `count` that is at least vocab_size."""
    return -(-vocab_size // count) * count


def _draw(shape: tuple[int, ...], std: float, name: str, seed: int) -> torch.Tensor:
    # Always on the CPU and in float32: the same numbers on every device and in every precision.
    generator = torch.Generator("cpu").manual_seed(digest("parameter", seed, name))
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)


def make_parameter(
    shape: tuple[int, ...],
    layout: Layout,
    *,
    name: str,
    group=None,
    std: float | None = None,
    constant: float = 0.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    copy: bool = False,
) -> nn.Parameter:
    """This rank's piece of the logical tensor `shape` (already padded), marked with its layout.

    Normal with standard deviation `std`, or filled with `constant` when std is None. Rows past `layout.padded_from` are 0.
    Nothing is drawn on the meta device.

    Raises:
        ValueError: if a part along the sharded axis is not divisible by the group's size; the message names both.
    """
    index, count = group_rank(group), group_size(group)
    local = list(shape)
    if layout.sharded:
        for part in layout.parts or (shape[layout.axis],):
            local_size(part, count, f"size of {name} along axis {layout.axis}")
        local[layout.axis] = shape[layout.axis] // count
    data = torch.empty(local, device=device, dtype=dtype)
    if data.device.type != "meta":
        if std is None:
            data.fill_(constant)
        else:
            full = _draw(_logical(shape, layout), std, name, seed)
            if tuple(full.shape) != tuple(shape):
                full = torch.cat([full, full.new_zeros(shape[0] - full.shape[0], *shape[1:])])
            data.copy_(shard(full, layout, index, count))
    return mark(nn.Parameter(data), layout, name, copy)


def _logical(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    if layout.padded_from is None:
        return tuple(shape)
    if layout.axis != 0:
        raise ValueError(f"only axis 0 (vocabulary rows) can be padded, not axis {layout.axis}")
    return (layout.padded_from, *shape[1:])
