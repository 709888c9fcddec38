"""The product of a column-parallel layer, whose backward collective runs while the weight gradient is computed.

With G the gradient of y = x W^T at this rank's columns: dX = reduce(G W) and dW = G^T x, and dW does not need the reduction. The
work is cut into three autograd nodes, made in this order, and the engine runs the ready node that was made last:

    _InputGradient   computes G W and starts its reduction
    _Product         computes dW meanwhile
    _Enter           waits for the reduction and hands dX on

A pass that asks for the gradient of activations only (torch.autograd.grad, as ghost products do) never reaches _Product: the
engine leaves it out, and with it the weight gradient. One node for all of it could not know (ctx.needs_input_grad tells what the
forward pass saw, not what is asked for). Overlapped or not, the same operations are done on the same numbers, so the results are
equal bit for bit. (Under sequence parallelism such a pass still gathers the input again, for a weight gradient that does not come:
whether it comes is known only afterwards.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mads.collectives import Pending, group_size, start_all_reduce, start_gather, start_reduce_scatter


class _Exchange:
    """What the three nodes of one product share."""

    def __init__(self, group, sequence_parallel: bool, overlap: bool):
        self.group, self.sequence_parallel, self.overlap = group, sequence_parallel, overlap
        self._input_gradient: Pending | None = None
        self._gathered: Pending | None = None

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """The input at all positions that this group works on."""
        if not self.sequence_parallel:
            return x
        pending, self._gathered = self._gathered, None
        return (pending or start_gather(x, self.group)).wait()

    def start_to_gather(self, x: torch.Tensor) -> None:
        """Before dX is computed, so that the gathering hides behind it and the queue of collectives is free afterwards."""
        if self.sequence_parallel and self.overlap:
            self._gathered = start_gather(x, self.group)

    def start_to_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """The buffer in which dX will be."""
        start = start_reduce_scatter if self.sequence_parallel else start_all_reduce
        self._input_gradient = start(partial, self.group)
        return self._input_gradient.result if self.overlap else self._input_gradient.wait()

    def input_gradient(self) -> torch.Tensor:
        pending, self._input_gradient = self._input_gradient, None
        gathered, self._gathered = self._gathered, None
        if gathered is not None:  # nobody asked for the weight gradient
            gathered.wait()
        return pending.wait()


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, exchange):
        ctx.exchange = exchange
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, unfinished):
        return ctx.exchange.input_gradient(), None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, exchange):
        ctx.save_for_backward(x)  # the local slice: gathered again in backward, t times less to keep
        ctx.exchange, ctx.has_bias = exchange, bias is not None
        return F.linear(exchange.whole(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        weight_gradient = rows.t() @ ctx.exchange.whole(x).flatten(0, -2)
        return None, weight_gradient, rows.sum(0) if ctx.has_bias else None, None


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, entered, x, weight, product, exchange):
        # The Parameter itself is saved, not its data: ZeRO 3 takes the data away in between and brings it back.
        ctx.save_for_backward(*((x, weight) if exchange.sequence_parallel and exchange.overlap else (weight,)))
        ctx.exchange = exchange
        return product.view_as(product)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *x, weight = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:  # nothing before this layer is trained
            return None, None, None, grad, None
        if x and ctx.needs_input_grad[3]:
            ctx.exchange.start_to_gather(x[0])
        return ctx.exchange.start_to_reduce(grad @ weight), None, None, grad, None


def column_parallel_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, group, sequence_parallel: bool = False, overlap: bool = True
) -> torch.Tensor:
    """x W^T + b at this rank's columns, [B, S, out / t].

    Args:
        x: [B, S, in], whole on every rank; under sequence parallelism this rank's slice [B, S / t, in].
        weight, bias: this rank's rows of W [out, in] and b.
        overlap: the collective of dX runs while dW is computed.

    Source: Shoeybi et al. 2019, arXiv 1909.08053, section 3; with sequence parallelism Korthikanti et al. 2022, arXiv 2205.05198,
    section 4.2.2.
    """
    if group_size(group) == 1:
        return F.linear(x, weight, bias)
    exchange = _Exchange(group, sequence_parallel, overlap)
    entered, constant = _Enter.apply(x, exchange), x.detach()
    product = _Product.apply(constant, weight, bias, exchange)
    return _InputGradient.apply(entered, constant, weight, product, exchange)
