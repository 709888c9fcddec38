"""The ghost product: <direction, gradient of each token's loss> without a parameter gradient.

For y = f(x; w) with parameters w, the gradient of the loss along a direction v of w is sum over positions of delta . u, where
delta is the gradient of the output y and u = (d f / d w) v is the output's own derivative (for a linear layer x V^T). A tap on
every layer's output holds u on the way forward and meets delta on the way back. Summed over a sample's positions this is exactly
the inner product with the sample's gradient (GREATS 2024; "ghost" after Lee and Kifer 2020). Weight gradients are never formed:
the backward pass asks for the gradient of the embedding's output only, so no gradient hook of DeepSpeed's fires.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from mads.data.batch import PackedBatch, sum_by_sample
from mads.tensor import VocabParallelHead


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output, derivative, products):
        ctx.save_for_backward(derivative)
        ctx.products = products  # [B, positions of the output]
        return output.view_as(output)

    @staticmethod
    def backward(ctx, delta):
        (derivative,) = ctx.saved_tensors
        # Positions are dimensions 0 and 1, everything behind is summed.
        exact = ctx.products.dtype
        ctx.products.add_((delta.to(exact) * derivative.to(exact)).flatten(2).sum(-1))
        return delta, None, None


class Sink:
    """Where the taps of a forward pass add their products: one tensor [B, S] for each batch."""

    def __init__(self, module: nn.Module):
        # In float32 at least, whatever the parameters are.
        self._dtype = torch.promote_types(torch.float32, next(module.parameters()).dtype)
        self.products: torch.Tensor | None = None
        self.first: torch.Tensor | None = None  # the first tapped output, whose gradient the backward pass must ask for

    def begin(self, batch: PackedBatch) -> torch.Tensor:
        """Before the forward pass of a batch: its products, which are complete after its backward pass."""
        self.products = torch.zeros(batch.tokens.shape, dtype=self._dtype, device=batch.tokens.device)
        self.first = None
        return self.products


@contextmanager
def taps(module: nn.Module, direction_of: Callable[[nn.Parameter], torch.Tensor], sink: Sink):
    """Inside, every forward of a layer with parameters adds its part to the sink's products when the backward pass comes through.

    Args:
        direction_of: the direction's block for a parameter, shaped as the whole parameter, in the layer's dtype.

    Raises:
        TypeError: for a layer that has parameters, but no weight_derivative.
    """

    def tap(layer, inputs, output):
        blocks = {name: direction_of(p) for name, p in layer.named_parameters(recurse=False)}
        with torch.no_grad():
            derivative = layer.weight_derivative(inputs[0].detach(), blocks)
        if sink.first is None:
            sink.first = output
        return _Tap.apply(output, derivative, sink.products[:, layer.positions(sink.products.shape[1])])

    def ask(head, inputs):
        """The head's logits and their gradient exist in rows at a time, so it makes its products itself."""
        x, *targets = inputs
        return (x, replace(targets[0], direction=direction_of(head.weight))) if targets else None

    def take(head, inputs, output):
        if not isinstance(output, tuple):
            return tap(head, inputs, output)
        *output, products = output
        with torch.no_grad():
            sink.products[:, head.positions(sink.products.shape[1])] += products
        return tuple(output)

    layers = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    untapped = [type(m).__name__ for m in layers if not hasattr(m, "weight_derivative")]
    if untapped:
        raise TypeError(
            f"layers with parameters but without weight_derivative: {sorted(set(untapped))}; their part would be missing"
        )
    heads = [layer for layer in layers if isinstance(layer, VocabParallelHead)]
    handles = [layer.register_forward_hook(take if layer in heads else tap) for layer in layers]
    handles += [head.register_forward_pre_hook(ask) for head in heads]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ghost_products(module: nn.Module, batch: PackedBatch, direction_of: Callable[[nn.Parameter], torch.Tensor]) -> torch.Tensor:
    """<direction, gradient of the sample's summed token loss>, float64 [samples]; this rank's share under model parallelism."""
    sink = Sink(module)
    products = sink.begin(batch)
    with torch.enable_grad(), taps(module, direction_of, sink):
        loss, _ = module(batch.tokens, batch.labels, batch.positions, batch.segments)
        torch.autograd.grad(loss, sink.first)
    return sum_by_sample(products, batch)
