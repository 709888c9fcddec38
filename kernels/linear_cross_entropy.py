"""Cross entropy of a linear head whose logits are never kept: a few rows of them at a time, and their gradient in the same visit.

With logits a = x W^T, log-sum-exp s and target y, the gradient of scale * loss at the logits is, for the objective of
mads.tensor.Objective with smoothing e and z-loss z over V tokens,

    g_v = scale * ((1 + 2 z s) * exp(a_v - s)  -  e / V  -  (1 - e) * [v = y]).

Because the scale of each row is known beforehand, g takes the place of the rows' logits while these are in the cache, and what
stays of them is dX = g W and the addend g^T x of dW. (The idea of Liger-Kernel's fused linear cross entropy, Hsu et al. 2024,
arXiv 2410.10989, whose kernel knows no vocabulary that is cut over ranks.) Ghost products of the head, the sum over v of
g_v (x U^T)_v with a direction U of W, need g as well and are taken in the same visit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mads.kernels import cross_entropy_triton as triton

# Rows in work at a time. On a CPU enough for the matrix products and few enough for the cache: 256 rows were the fastest at
# vocabularies of 4,096, 8,192 and 32,000 (benchmarks/head.md). On a GPU products want more, and memory is the limit.
_CPU_ROWS = 256
_GPU_ELEMENTS = 1 << 26


@dataclass(frozen=True)
class Columns:
    """Which tokens of the vocabulary the rows of this rank's weight are: first .. first + valid - 1, and padding behind them."""

    first: int
    valid: int
    vocab_size: int


@dataclass
class Result:
    """losses: [N]; float32, float64 for float64 rows. dx [N, H], dw [V / t, H], products [N] (as losses): where asked for."""

    losses: torch.Tensor
    dx: torch.Tensor | None = None
    dw: torch.Tensor | None = None
    products: torch.Tensor | None = None


def rows_at_a_time(width: int, device: torch.device) -> int:
    """Rows of `width` logits that are in memory at a time."""
    return _CPU_ROWS if device.type == "cpu" else max(_CPU_ROWS, _GPU_ELEMENTS // max(1, width))


def linear_cross_entropy(
    x: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    columns: Columns,
    scale: torch.Tensor | None = None,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    combine: Callable[[torch.Tensor], torch.Tensor] = lambda statistics: statistics,
    want_dx: bool = False,
    want_dw: bool = False,
    direction: torch.Tensor | None = None,
) -> Result:
    """Losses of rows, and the gradients of sum(scale * loss).

    Args:
        x: hidden states [N, H]. weight: [V / t, H], in the same dtype.
        labels: int64 [N]; rows with ignore_index have loss, gradient and product 0.
        scale: [N]; None = 1.
        combine: takes this rank's (log-sum-exp, target logit, sum of the logits) [3, n] of some rows, gives those over the whole
            vocabulary; called for the same rows on all ranks that share it.
        want_dx: this rank's addend g W over the vocabulary's cut.
        direction: U as `weight`: also this rank's addend of each row's product, with scale 1 if None.
    """
    exact = torch.promote_types(torch.float32, x.dtype)
    losses = torch.empty(len(x), dtype=exact, device=x.device)
    result = Result(losses)
    backward = want_dx or want_dw or direction is not None
    result.dx = torch.empty_like(x) if want_dx else None
    total = torch.zeros(weight.shape, dtype=exact, device=x.device) if want_dw else None
    result.products = torch.empty_like(losses) if direction is not None else None
    counted = labels != ignore_index
    scale = counted.to(exact) if scale is None else torch.where(counted, scale.to(exact), 0.0)
    kind = _TritonRows if triton.available(x.device) and x.dtype != torch.float64 else _Rows
    step = rows_at_a_time(len(weight), x.device)
    buffer = torch.empty(min(step, len(x)), len(weight), dtype=x.dtype, device=x.device)
    for i in range(0, len(x), step):
        rows, part = slice(i, i + step), x[i : i + step]
        logits = torch.mm(part, weight.t(), out=buffer[: len(part)])
        chunk = kind(logits, labels[rows] - columns.first, columns, smoothing)
        lse, target, summed = combine(chunk.statistics)
        loss = lse - target
        if smoothing:  # the mean over the logical vocabulary of -log softmax is lse - mean of the logits
            loss = (1 - smoothing) * loss + smoothing * (lse - summed / columns.vocab_size)
        if z_loss:
            loss = loss + z_loss * lse.square()
        losses[rows] = torch.where(counted[rows], loss, 0.0)
        if not backward:
            continue
        gradient = chunk.gradient(lse, scale[rows], smoothing, z_loss)
        if direction is not None:
            derivative = part @ direction.t()
            result.products[rows] = (gradient.to(exact) * derivative.to(exact)).sum(-1)
        if want_dx:
            torch.mm(gradient, weight, out=result.dx[rows])
        if want_dw:
            if total.dtype == gradient.dtype:
                total.addmm_(gradient.t(), part)
            else:  # summed over the chunks in float32
                total += gradient.t() @ part
    result.dw = total if total is None else total.to(weight.dtype)
    return result


class _Rows:
    """Logits of a few rows, which their exponentials and then their gradient overwrite.

    statistics: [3, n], this rank's log-sum-exp (-inf without a valid column), logit of the label (0 where another rank has it)
    and sum of the logits (0 without smoothing)
    """

    def __init__(self, logits: torch.Tensor, local: torch.Tensor, columns: Columns, smoothing: float):
        exact = torch.promote_types(torch.float32, logits.dtype)
        self._logits, self._columns = logits, columns
        self._here = (local >= 0) & (local < columns.valid)
        self._column = local.clamp(0, max(0, columns.valid - 1)).unsqueeze(1)
        self.statistics = torch.zeros(3, len(logits), dtype=exact, device=logits.device)
        self._work = logits[:, : columns.valid].to(exact)  # a view, if it is that already
        if not columns.valid:
            self.statistics[0] = -torch.inf
            return
        picked = self._work.gather(1, self._column).squeeze(1)
        self.statistics[1] = torch.where(self._here, picked, 0.0)
        if smoothing:
            self.statistics[2] = self._work.sum(-1)
        self._highest = self._work.amax(-1)
        self._work.sub_(self._highest.unsqueeze(1)).exp_()
        self.statistics[0] = self._highest + self._work.sum(-1).log()

    def gradient(self, lse: torch.Tensor, scale: torch.Tensor, smoothing: float, z_loss: float) -> torch.Tensor:
        """[n, V / t] in the dtype of the logits, in their place; 0 at padding. lse: of the whole vocabulary; scale: [n]."""
        valid = self._columns.valid
        self._logits[:, valid:] = 0
        if not valid:
            return self._logits
        factor = (self._highest - lse).exp() * scale
        if z_loss:
            factor *= 1 + 2 * z_loss * lse
        self._work.mul_(factor.unsqueeze(1))
        if smoothing:
            self._work.sub_((scale * (smoothing / self._columns.vocab_size)).unsqueeze(1))
        self._work.scatter_add_(1, self._column, (self._here * scale * (smoothing - 1)).unsqueeze(1))
        if self._work.dtype != self._logits.dtype:
            self._logits[:, :valid] = self._work
        return self._logits


class _TritonRows:
    """The same in one pass over memory each."""

    def __init__(self, logits: torch.Tensor, local: torch.Tensor, columns: Columns, smoothing: float):
        self._logits, self._local, self._columns = logits, local, columns
        self.statistics = torch.stack(triton.row_statistics(logits, local, columns.valid))

    def gradient(self, lse: torch.Tensor, scale: torch.Tensor, smoothing: float, z_loss: float) -> torch.Tensor:
        columns = self._columns
        return triton.logits_gradient_(
            self._logits, lse.contiguous(), self._local, scale, columns.valid, columns.vocab_size, smoothing, z_loss
        )
