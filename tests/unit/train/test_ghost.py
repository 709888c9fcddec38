"""Ghost products: exact against autograd on a module of its own, and loud about layers they cannot see into."""

import pytest
import torch
from model_cases import plain_losses, small_batch, small_config
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mads.data.batch import sum_by_sample
from mads.model.decoder import Decoder
from mads.train.ghost import ghost_products


def directions(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {p: torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in module.parameters()}


@pytest.mark.parametrize("tied", [False, True])
def test_products_equal_the_gradient_of_each_sample(tied):
    module, batch = Decoder(small_config(tie_embeddings=tied)), small_batch()
    v = directions(module)
    found = ghost_products(module, batch, v.__getitem__)
    losses = sum_by_sample(plain_losses(module, batch), batch)
    for index in range(batch.samples):
        gradients = torch.autograd.grad(losses[index], list(v), retain_graph=True)
        exact = sum((g.double() * d.double()).sum() for g, d in zip(gradients, v.values()))
        assert float(found[index]) == pytest.approx(float(exact), rel=1e-4, abs=1e-4)
    assert all(p.grad is None for p in module.parameters())


def test_a_ghost_product_costs_what_training_costs():
    """As the record says (mads.reward.influence.Rewarder.flops): outputs' derivatives are products of the weights' size too."""
    module, batch = Decoder(small_config()), small_batch()
    v, counted = directions(module), []
    for run in (lambda: ghost_products(module, batch, v.__getitem__), lambda: plain_losses(module, batch).sum().backward()):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run()
        counted.append(counter.get_total_flops())
    assert counted[0] == pytest.approx(counted[1], rel=0.02)


def test_each_layer_adds_its_own_part():
    """A direction that is zero everywhere but in one parameter: what a skipped layer would lose."""
    module, batch = Decoder(small_config(tie_embeddings=False)), small_batch()
    losses = sum_by_sample(plain_losses(module, batch), batch)
    v = directions(module)
    for parameter, direction in v.items():
        one = {p: direction if p is parameter else torch.zeros_like(p) for p in v}
        found = ghost_products(module, batch, one.__getitem__)
        (gradient,) = torch.autograd.grad(losses.sum(), [parameter], retain_graph=True)
        assert float(found.sum()) == pytest.approx(float((gradient * direction).sum()), rel=1e-3, abs=1e-3)
        assert float(found.abs().max()) > 0


def test_a_layer_without_weight_derivative_is_refused_by_name():
    module, batch = Decoder(small_config()), small_batch()
    module.layers[0].extra = nn.Linear(4, 4)
    module.layers[1].extra = nn.LayerNorm(4)
    with pytest.raises(TypeError, match=r"without weight_derivative: \['LayerNorm', 'Linear'\]; their part would be missing"):
        ghost_products(module, batch, lambda p: p)
    assert not any(m._forward_hooks for m in module.modules())


def test_taps_are_gone_afterwards_also_after_an_error():
    module, batch = Decoder(small_config()), small_batch()
    v = directions(module)
    before = plain_losses(module, batch)
    ghost_products(module, batch, v.__getitem__)

    def fails(parameter):
        raise RuntimeError("no direction for this parameter")

    with pytest.raises(RuntimeError, match="no direction"):
        ghost_products(module, batch, fails)
    assert not any(m._forward_hooks for m in module.modules())
    assert torch.equal(plain_losses(module, batch), before)
