"""What each parameter is under tensor parallelism: sharded along an axis, or replicated; and what it is tied to.

One place holds this knowledge. Gradient norms, clipping, resharding of checkpoints and the tests read it; the marks that
DeepSpeed looks for are derived from it, because a sharded parameter without `tensor_model_parallel = True` silently gets a
wrong gradient norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Layout:
    """How a parameter relates to its logical (whole) tensor.

    axis: dimension of the logical tensor that is cut over the tensor-parallel ranks; None = replicated.
    parts: logical sizes, along `axis`, of the parts of a fused weight (for example Q, K, V). Each part is cut by itself,
        so a shard is the concatenation of one slice of every part. Empty for a weight of one part.
    padded_from: logical size along `axis` before padding (vocabulary rows that no token uses); None = no padding.
    """

    axis: int | None = None
    parts: tuple[int, ...] = ()
    padded_from: int | None = None

    @property
    def sharded(self) -> bool:
        return self.axis is not None


REPLICATED = Layout()
_LAYOUT, _NAME, _COPY = "mads_layout", "mads_name", "mads_copy"


def mark(parameter: nn.Parameter, layout: Layout, name: str, copy: bool = False) -> nn.Parameter:
    """Attach what a parameter is, and set the marks that DeepSpeed reads. Returns the parameter.

    Args:
        name: logical name, the same for every parallel size; start values and checkpoints go by it.
        copy: whether this is the last stage's copy of a weight that the first stage holds too (tied embeddings). A copy is
            trained, but neither counted in a norm nor saved.
    """
    setattr(parameter, _LAYOUT, layout)
    setattr(parameter, _NAME, name)
    setattr(parameter, _COPY, copy)
    parameter.tensor_model_parallel = layout.sharded
    parameter.ds_pipe_replicated = copy
    return parameter


def layout_of(parameter: nn.Parameter) -> Layout:
    """The layout of a parameter.

    Raises:
        LookupError: if nobody marked it; a guess here would be a silently wrong norm or checkpoint.
    """
    layout = getattr(parameter, _LAYOUT, None)
    if layout is None:
        raise LookupError(
            f"a parameter of shape {tuple(parameter.shape)} has no layout; call mads.layout.mark where it is created"
        )
    return layout


def shard(full: torch.Tensor, layout: Layout, index: int, count: int) -> torch.Tensor:
    """The slice of a logical tensor that tensor-parallel rank `index` of `count` holds (a copy, contiguous)."""
    if not layout.sharded or count == 1:
        return full.clone()
    parts = layout.parts or (full.shape[layout.axis],)
    if sum(parts) != full.shape[layout.axis]:
        raise ValueError(f"the parts {parts} sum to {sum(parts)}, but axis {layout.axis} has size {full.shape[layout.axis]}")
    for size in parts:
        if size % count:
            raise ValueError(f"a part of size {size} cannot be cut into {count} equal tensor-parallel shards")
    pieces = [part.chunk(count, layout.axis)[index] for part in full.split(parts, layout.axis)]
    return torch.cat(pieces, layout.axis).contiguous()


def unshard(shards: list[torch.Tensor], layout: Layout) -> torch.Tensor:
    """Inverse of `shard`: the logical tensor from the slices of all tensor-parallel ranks, in rank order."""
    if not layout.sharded or len(shards) == 1:
        return shards[0].clone()
    count = len(shards)
    total = sum(s.shape[layout.axis] for s in shards)
    local = [size // count for size in (layout.parts or (total,))]
    split = [s.split(local, layout.axis) for s in shards]
    return torch.cat([s[p] for p in range(len(local)) for s in split], layout.axis).contiguous()


def logical_shape(parameter: nn.Parameter, count: int) -> torch.Size:
    """Shape of the whole tensor, without padding, of which the parameter is one of `count` tensor-parallel shards."""
    layout = layout_of(parameter)
    shape = list(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO 3 leaves an empty tensor and notes the shape
    if layout.sharded:
        shape[layout.axis] = shape[layout.axis] * count if layout.padded_from is None else layout.padded_from
    return torch.Size(shape)


def name_of(parameter: nn.Parameter) -> str:
    """The logical name. Raises LookupError as `layout_of` does."""
    layout_of(parameter)
    return getattr(parameter, _NAME)


def is_copy(parameter: nn.Parameter) -> bool:
    """Whether another pipeline stage holds the original of this tied weight."""
    return getattr(parameter, _COPY, False)


def counts_on(parameter: nn.Parameter, tensor_parallel_rank: int) -> bool:
    """Whether this rank's piece counts in a sum over the ranks of a model: every shard, but a replica and a copy only once."""
    return not is_copy(parameter) and (layout_of(parameter).sharded or tensor_parallel_rank == 0)


def named_logical_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters by logical name, each storage once, in a fixed order.

    Raises:
        LookupError: if a parameter is unmarked.
    """
    return sorted(((name_of(p), p) for p in module.parameters()), key=lambda item: item[0])
