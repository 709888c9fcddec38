"""Megatron-style layers (Shoeybi et al. 2019, arXiv 1909.08053, section 3) that degenerate to plain ones at size 1.

Every layer takes its process group explicitly (None or a group of one rank = no collective) and its logical name, which seeds the
start values (mads.tensor.init). Every parameter carries its mads.layout mark.

`weight_derivative(x, direction)` is the derivative of the layer's output when its own parameters move along `direction`, at the
input x that this rank's forward saw. Ghost products (as in GREATS, Wang et al. 2024) rest on it: with delta the gradient at the
layer's output,

    sum over the ranks of the group of  sum(delta * weight_derivative(x, v))  =  <gradient of the layer's parameters, v>.

Sharded parameters contribute on the rank that holds the shard; replicated ones on the group's first rank alone, so that the sum
counts them once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mads.collectives import copy_to_group, group_rank, group_size, reduce_from_group
from mads.layout import REPLICATED, Layout
from mads.tensor.checks import require_ids
from mads.tensor.init import make_parameter, padded_vocab_size

Direction = dict[str, torch.Tensor]  # local parameter name ("weight", "bias") -> tensor of the parameter's shape


class ColumnParallelLinear(nn.Module):
    """y = x W^T + b with the rows of W [out, in], the columns of W^T, cut over the group. x is whole, y is this rank's slice.

    Args:
        in_features, out_features: logical sizes.
        name: logical name of the layer.
        parts: logical sizes of the parts of a fused weight, each cut by itself: (q, k, v) or (gate, up).
        bias: add a bias, cut as the rows are.
        std: standard deviation of the start weights.
        weight: use this Parameter instead of a new one (a tied head).

    Shapes: x [..., in] -> y [..., out / t].

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
    ):
        super().__init__()
        if parts and sum(parts) != out_features:
            raise ValueError(f"{name}: the parts {tuple(parts)} sum to {sum(parts)}, not to out_features = {out_features}")
        self.group = group
        layout = Layout(axis=0, parts=tuple(parts))
        common = dict(group=group, seed=seed, device=device, dtype=dtype)
        if weight is None:
            weight = make_parameter((out_features, in_features), layout, name=f"{name}.weight", std=std, **common)
        self.weight = weight
        self.bias = make_parameter((out_features,), layout, name=f"{name}.bias", **common) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(copy_to_group(x, self.group), self.weight, self.bias)

    def weight_derivative(self, x: torch.Tensor, direction: Direction) -> torch.Tensor:
        """x V^T + v_b: [..., out / t], this rank's slice."""
        return F.linear(x, direction["weight"], direction["bias"] if self.bias is not None else None)


class VocabParallelHead(ColumnParallelLinear):
    """The language model's head: hidden states -> this rank's slice of the logits over the padded vocabulary.

    The vocabulary is padded to a multiple of the group's size; padding rows start at 0, and the cross entropy gives them no
    gradient.

    Args:
        copy: whether the embedding of that name is on another pipeline stage and this weight is tied to it.
        tied: the embedding's Parameter, for tied weights. The module holds the same Parameter, so that hooks on modules (ZeRO 3's
            gathering, ghost products) see this use too.

    Shapes: x [..., hidden] -> logits [..., padded vocabulary / t].
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
    ):
        weight = tied
        if weight is None:
            weight = _vocabulary_parameter(vocab_size, hidden_size, name, group, std, seed, device, dtype, copy)
        super().__init__(hidden_size, weight.shape[0] * group_size(group), name=name, group=group, weight=weight)
        self.vocab_size = vocab_size


class RowParallelLinear(nn.Module):
    """y = x W^T + b with the columns of W [out, in] cut over the group. x is this rank's slice, y is whole on every rank.

    The bias is replicated and added once, after the reduction.

    Shapes: x [..., in / t] -> y [..., out].

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
    ):
        super().__init__()
        self.group = group
        common = dict(group=group, seed=seed, device=device, dtype=dtype)
        self.weight = make_parameter((out_features, in_features), Layout(axis=1), name=f"{name}.weight", std=std, **common)
        self.bias = make_parameter((out_features,), REPLICATED, name=f"{name}.bias", **common) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if group_size(self.group) == 1:
            return F.linear(x, self.weight, self.bias)
        y = reduce_from_group(F.linear(x, self.weight), self.group)
        return y if self.bias is None else y + self.bias

    def weight_derivative(self, x: torch.Tensor, direction: Direction) -> torch.Tensor:
        """This rank's addend of x V^T + v_b: [..., out]; v_b is in the first rank's."""
        first = self.bias is not None and group_rank(self.group) == 0
        return F.linear(x, direction["weight"], direction["bias"] if first else None)


class VocabParallelEmbedding(nn.Module):
    """Token embedding with the vocabulary's rows, padded to a multiple of the group's size, cut over the group.

    Shapes: tokens int64 [...] -> [..., hidden], whole on every rank.

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
    ):
        super().__init__()
        self.group = group
        self.vocab_size = vocab_size
        self.weight = _vocabulary_parameter(vocab_size, hidden_size, name, group, std, seed, device, dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        require_ids(tokens, self.vocab_size, "token")
        return reduce_from_group(self._rows(tokens, self.weight), self.group)

    def weight_derivative(self, x: torch.Tensor, direction: Direction) -> torch.Tensor:
        """V[tokens] where this rank holds the token's row, 0 elsewhere: [..., hidden]."""
        return self._rows(x, direction["weight"])

    def _rows(self, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if group_size(self.group) == 1:
            return F.embedding(tokens, weight)
        local = tokens - group_rank(self.group) * weight.shape[0]
        elsewhere = (local < 0) | (local >= weight.shape[0])
        rows = F.embedding(local.masked_fill(elsewhere, 0), weight)
        return rows.masked_fill(elsewhere.unsqueeze(-1), 0.0)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv 1910.07467). Replicated: same input, same gradient on
    every rank of the group.

    Shapes: x [..., size] -> [..., size].
    """

    def __init__(self, size: int, *, name: str, eps: float = 1e-5, group=None, device=None, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.group = group
        self.eps = eps
        self.weight = make_parameter((size,), REPLICATED, name=f"{name}.weight", constant=1.0, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)

    def weight_derivative(self, x: torch.Tensor, direction: Direction) -> torch.Tensor:
        """The normalised x times v on the group's first rank, 0 on the others: [..., size]."""
        if group_rank(self.group) != 0:
            return torch.zeros_like(x)
        return F.rms_norm(x, (x.shape[-1],), direction["weight"], self.eps)


TENSOR_LAYERS = (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding, RMSNorm)  # the modules that own parameters


def _vocabulary_parameter(vocab_size, hidden_size, name, group, std, seed, device, dtype, copy: bool = False) -> nn.Parameter:
    padded = padded_vocab_size(vocab_size, group_size(group))
    layout = Layout(axis=0, padded_from=None if padded == vocab_size else vocab_size)
    placed = dict(group=group, std=std, seed=seed, device=device, dtype=dtype)
    return make_parameter((padded, hidden_size), layout, name=f"{name}.weight", copy=copy, **placed)
