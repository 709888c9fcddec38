"""Megatron-style layers (Shoeybi et al. 2019, arXiv 1909.08053, section 3) that degenerate to plain ones at size 1.

Every layer takes its process group explicitly (None or a group of one rank = no collective) and its logical name, which seeds the
start values (mads.tensor.init). Every parameter carries its mads.layout mark.

`weight_derivative(x, direction)` is the derivative of the layer's output when its own parameters move along `direction`, at the
input x that this rank's forward saw. Ghost products (as in GREATS, Wang et al. 2024) rest on it: with delta the gradient at the
layer's output,

    sum over the ranks of the group of  sum(delta * weight_derivative(x, v))  =  <gradient of the layer's parameters, v>.

Sharded parameters contribute on the rank that holds the shard; replicated ones on the group's first rank alone, so that the sum
counts them once. Where the output is cut along the sequence, each rank has delta for its own positions: there a sharded weight's
addends are summed over the ranks first, and a replicated weight contributes on every rank, for its positions.

With `sequence_parallel` (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2) hidden states [B, S, h] are cut along
dimension 1 over the group between a row-parallel (or embedding) and the next column-parallel layer. `context` is the group over
which context parallelism has cut the rows before that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mads.collectives import (
    copy_to_group,
    gather_sequence,
    group_rank,
    group_size,
    reduce_from_group,
    reduce_scatter_sequence,
    slice_of,
)
from mads.kernels.elementwise import rms_norm
from mads.layout import REPLICATED, Layout
from mads.tensor.checks import require_ids
from mads.tensor.column import column_parallel_linear
from mads.tensor.cross_entropy import Targets, vocab_parallel_cross_entropy
from mads.tensor.init import make_parameter, padded_vocab_size

Direction = dict[str, torch.Tensor]  # local parameter name ("weight", "bias") -> tensor of the parameter's shape


class TensorLayer(nn.Module):
    """What all layers know of their place: the tensor-parallel group, whether the sequence is cut over it, the context group."""

    def __init__(self, group, sequence_parallel: bool, context):
        super().__init__()
        self.group, self.sequence_parallel, self.context = group, sequence_parallel and group_size(group) > 1, context

    def positions(self, total: int) -> slice:
        """Which of a row's `total` positions this rank's output holds."""
        return slice_of(total, self.context, self.group) if self.sequence_parallel else slice_of(total, self.context)

    def _sum(self, partial: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks; under sequence parallelism this rank's positions of it."""
        return (reduce_scatter_sequence if self.sequence_parallel else reduce_from_group)(partial, self.group)

    def _replicated(self, parameter: nn.Parameter) -> torch.Tensor:
        """A replicated parameter for use at this rank's positions. Under sequence parallelism each rank's gradient is that of its
        own positions, and the backward of this sums them. It happens inside of autograd, not in a pass over all gradients
        afterwards, because under ZeRO 2 and 3 DeepSpeed's hooks reduce and cut a gradient over data parallel as soon as it
        exists: a later pass would find pieces."""
        return copy_to_group(parameter, self.group) if self.sequence_parallel else parameter

    @property
    def _counts(self) -> bool:
        """Whether this rank contributes for replicated parameters."""
        return self.sequence_parallel or group_rank(self.group) == 0


class ColumnParallelLinear(TensorLayer):
    """y = x W^T + b with the rows of W [out, in], the columns of W^T, cut over the group. x is whole, y is this rank's slice.

    Args:
        in_features, out_features: logical sizes.
        name: logical name of the layer.
        parts: logical sizes of the parts of a fused weight, each cut by itself: (q, k, v) or (gate, up).
        bias: add a bias, cut as the rows are.
        std: standard deviation of the start weights.
        weight: use this Parameter instead of a new one (a tied head).
        overlap: run the collective of the input's gradient while the weight's is computed (mads.tensor.column).

    Shapes: x [..., in] -> y [..., out / t]; under sequence parallelism x [B, S / t, in] -> y [B, S, out / t].

    Raises:
        ValueError: if a part is not divisible by the group's size t; the message names both.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        name: str,
        group=None,
        parts: tuple[int, ...] = (),
        bias: bool = False,
        std: float = 0.02,
        seed: int = 0,
        device=None,
        dtype: torch.dtype = torch.float32,
        weight: nn.Parameter | None = None,
        sequence_parallel: bool = False,
        context=None,
        overlap: bool = True,
    ):
        super().__init__(group, sequence_parallel, context)
        self.overlap = overlap
        if parts and sum(parts) != out_features:
            raise ValueError(f"{name}: the parts {tuple(parts)} sum to {sum(parts)}, not to out_features = {out_features}")
        layout = Layout(axis=0, parts=tuple(parts))
        common = dict(group=group, seed=seed, device=device, dtype=dtype)
        if weight is None:
            weight = make_parameter((out_features, in_features), layout, name=f"{name}.weight", std=std, **common)
        self.weight = weight
        self.bias = make_parameter((out_features,), layout, name=f"{name}.bias", **common) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return column_parallel_linear(x, self.weight, self.bias, self.group, self.sequence_parallel, self.overlap)

    def positions(self, total: int) -> slice:
        """Which of a row's `total` positions this rank's output holds: the group's are whole again."""
        return slice_of(total, self.context)

    def weight_derivative(self, x: torch.Tensor, direction: Direction) -> torch.Tensor:
        """x V^T + v_b: [..., out / t], this rank's slice of the channels."""
        x = gather_sequence(x, self.group) if self.sequence_parallel else x
        return F.linear(x, direction["weight"], direction["bias"] if self.bias is not None else None)


class VocabParallelHead(ColumnParallelLinear):
    """The language model's head: hidden states -> this rank's slice of the logits over the padded vocabulary.

    The vocabulary is padded to a multiple of the group's size; padding rows start at 0, and the cross entropy gives them no
    gradient.

    Args:
        copy: whether the embedding of that name is on another pipeline stage and this weight is tied to it.
        tied: the embedding's Parameter, for tied weights. The module holds the same Parameter, so that hooks on modules (ZeRO 3's
            gathering, ghost products) see this use too.
        place: sequence_parallel, context and overlap, as for ColumnParallelLinear.

    Shapes: x [..., hidden] -> logits [..., padded vocabulary / t]. With targets: see `mads.tensor.cross_entropy`.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        *,
        name: str,
        group=None,
        std: float = 0.02,
        seed: int = 0,
        device=None,
        dtype: torch.dtype = torch.float32,
        tied: nn.Parameter | None = None,
        copy: bool = False,
        **place,
    ):
        weight = tied
        if weight is None:
            weight = _vocabulary_parameter(vocab_size, hidden_size, name, group, std, seed, device, dtype, copy)
        super().__init__(hidden_size, weight.shape[0] * group_size(group), name=name, group=group, weight=weight, **place)
        self.vocab_size = vocab_size

    def forward(self, x: torch.Tensor, targets: Targets | None = None):
        if targets is None:
            return super().forward(x)
        return vocab_parallel_cross_entropy(x, self.weight, targets, self.vocab_size, self.group, self.sequence_parallel)


class RowParallelLinear(TensorLayer):
    """y = x W^T + b with the columns of W [out, in] cut over the group. x is this rank's slice, y is whole on every rank.

    The bias is replicated and added once, after the reduction.

    Shapes: x [..., in / t] -> y [..., out]; under sequence parallelism x [B, S, in / t] -> y [B, S / t, out].

    Raises:
        ValueError: if in_features is not divisible by the group's size t; the message names both.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        name: str,
        group=None,
        bias: bool = False,
        std: float = 0.02,
        seed: int = 0,
        device=None,
        dtype: torch.dtype = torch.float32,
        sequence_parallel: bool = False,
        context=None,
    ):
        super().__init__(group, sequence_parallel, context)
        common = dict(group=group, seed=seed, device=device, dtype=dtype)
        self.weight = make_parameter((out_features, in_features), Layout(axis=1), name=f"{name}.weight", std=std, **common)
        self.bias = make_parameter((out_features,), REPLICATED, name=f"{name}.bias", **common) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if group_size(self.group) == 1:
            return F.linear(x, self.weight, self.bias)
        y = self._sum(F.linear(x, self.weight))
        return y if self.bias is None else y + self._replicated(self.bias)

    def weight_derivative(self, x: torch.Tensor, direction: Direction) -> torch.Tensor:
        """This rank's addend of x V^T + v_b: [..., out]; v_b is in the first rank's. Under sequence parallelism the sum, at this
        rank's positions."""
        addend = F.linear(x, direction["weight"])
        if self.sequence_parallel:
            addend = reduce_scatter_sequence(addend, self.group)
        return addend + direction["bias"] if self.bias is not None and self._counts else addend


class VocabParallelEmbedding(TensorLayer):
    """Token embedding with the vocabulary's rows, padded to a multiple of the group's size, cut over the group.

    Shapes: tokens int64 [...] -> [..., hidden], whole on every rank; under sequence parallelism [B, S] -> [B, S / t, hidden].

    Raises:
        ValueError: at a token outside of 0 .. vocab_size - 1 (on CUDA an asynchronous device assertion).
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        name: str,
        group=None,
        std: float = 0.02,
        seed: int = 0,
        device=None,
        dtype: torch.dtype = torch.float32,
        sequence_parallel: bool = False,
        context=None,
    ):
        super().__init__(group, sequence_parallel, context)
        self.vocab_size = vocab_size
        self.weight = _vocabulary_parameter(vocab_size, hidden_size, name, group, std, seed, device, dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        require_ids(tokens, self.vocab_size, "token")
        return self._sum(self._rows(tokens, self.weight))

    def weight_derivative(self, x: torch.Tensor, direction: Direction) -> torch.Tensor:
        """V[tokens] where this rank holds the token's row, 0 elsewhere: [..., hidden]. Under sequence parallelism V[tokens] at
        this rank's positions."""
        rows = self._rows(x, direction["weight"])
        return reduce_scatter_sequence(rows, self.group) if self.sequence_parallel else rows

    def _rows(self, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if group_size(self.group) == 1:
            return F.embedding(tokens, weight)
        local = tokens - group_rank(self.group) * weight.shape[0]
        elsewhere = (local < 0) | (local >= weight.shape[0])
        rows = F.embedding(local.masked_fill(elsewhere, 0), weight)
        return rows.masked_fill(elsewhere.unsqueeze(-1), 0.0)


class RMSNorm(TensorLayer):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv 1910.07467). The weight is replicated. Without sequence
    parallelism it sees the same input, and has the same gradient, on every rank of the group.

    Shapes: x [..., size] -> [..., size].
    """

    def __init__(
        self,
        size: int,
        *,
        name: str,
        eps: float = 1e-5,
        group=None,
        device=None,
        dtype: torch.dtype = torch.float32,
        sequence_parallel: bool = False,
        context=None,
    ):
        super().__init__(group, sequence_parallel, context)
        self.eps = eps
        self.weight = make_parameter((size,), REPLICATED, name=f"{name}.weight", constant=1.0, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self._replicated(self.weight), self.eps)

    def weight_derivative(self, x: torch.Tensor, direction: Direction) -> torch.Tensor:
        """The normalised x times v: [..., size]; without sequence parallelism on the group's first rank, 0 on the others."""
        if not self._counts:
            return torch.zeros_like(x)
        return F.rms_norm(x, (x.shape[-1],), direction["weight"], self.eps)


TENSOR_LAYERS = (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding, RMSNorm)  # the modules that own parameters


def _vocabulary_parameter(vocab_size, hidden_size, name, group, std, seed, device, dtype, copy: bool = False) -> nn.Parameter:
    padded = padded_vocab_size(vocab_size, group_size(group))
    layout = Layout(axis=0, padded_from=None if padded == vocab_size else vocab_size)
    placed = dict(group=group, std=std, seed=seed, device=device, dtype=dtype)
    return make_parameter((padded, hidden_size), layout, name=f"{name}.weight", copy=copy, **placed)
