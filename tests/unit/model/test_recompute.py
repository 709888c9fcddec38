"""Activation recomputation on one rank: the same bits, less kept, and only as often as needed."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from model_cases import fields, pack, random_samples, small_batch, small_config

from mads.model import Decoder
from mads.model.placement import Placement
from mads.tensor import Objective, RowParallelLinear

KINDS = ("none", "selective", "full")


def _gradients(config, recompute):
    model = Decoder(config, Placement(recompute=recompute), seed=3, dtype=torch.float64)
    weights = torch.linspace(-1, 2, 30, dtype=torch.float64).view(2, 15)
    total, loss = model(*fields(small_batch()), torch.tensor([7, 8]), Objective(0.1, 1e-3), weights)
    total.backward()
    return loss, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_r4_gradients_are_the_same_bits_with_both_kinds_of_dropout(recompute):
    config = small_config(hidden_dropout=0.2, attention_dropout=0.3)
    loss, gradients = _gradients(config, "none")
    again, others = _gradients(config, recompute)
    assert torch.equal(loss, again) and all(torch.equal(a, b) for a, b in zip(gradients, others))
    assert not torch.equal(loss, _gradients(small_config(), "none")[0])


def _kept(layers, recompute):
    """Bytes that backward needs, with every storage once, without parameters."""
    model = Decoder(small_config(num_layers=layers), Placement(recompute=recompute))
    batch = pack([[s] for s in random_samples([64, 64], 131)], 64)
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack_hook(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        model(*fields(batch))
    return sum(storage.nbytes() for address, storage in kept.items() if address not in owned)


def test_a_layer_keeps_what_its_kind_of_recomputation_says():
    none, selective, full = (_kept(3, kind) - _kept(2, kind) for kind in KINDS)
    tokens, h, kv, f = 2 * 64, 32, 16, 24
    assert full == 4 * tokens * h, "the layer's input and nothing else"
    away = selective + 4 * tokens * ((h + kv) + f)  # q and k after RoPE; silu(gate) * up
    assert none >= away, (none, selective)
    inputs = 2 * h + 2 * h + (h + 2 * kv) + h + 2 * f  # norms' inputs and outputs; qkv; attention's output; gate and up
    assert 4 * tokens * inputs <= selective <= 4 * tokens * (inputs + 4)  # and one number per norm and position


@pytest.mark.parametrize("recompute, passes", [("none", 1), ("selective", 1), ("full", 2)])
def test_row_products_are_repeated_only_where_they_must_be(recompute, passes):
    """Recomputation ends at the last tensor that is needed: the layer behind SwiGLU is entered, but its product is not taken."""
    model = Decoder(small_config(num_layers=1), Placement(recompute=recompute))
    finished = []
    original = RowParallelLinear.forward

    def counting(self, x):
        y = original(self, x)
        finished.append(self)
        return y

    with mock.patch.object(RowParallelLinear, "forward", counting):
        model(*fields(small_batch()))[0].backward()
    assert finished.count(model.layers[0].attention.output) == passes
    assert finished.count(model.layers[0].mlp.down) == 1


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_nothing_is_recomputed_without_gradients(recompute):
    model = Decoder(small_config(), Placement(recompute=recompute), seed=1)
    with mock.patch("mads.model.recompute.checkpoint", side_effect=AssertionError("called")), torch.no_grad():
        _, loss = model(*fields(small_batch()))
    assert torch.equal(loss, Decoder(small_config(), replace(Placement(), overlap=False), seed=1)(*fields(small_batch()))[1])
