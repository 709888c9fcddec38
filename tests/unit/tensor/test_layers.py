"""Tensor layers at size 1 against plain PyTorch, and their weight derivatives."""

import pytest
import torch
import torch.nn.functional as F

from mads.layout import Layout, layout_of
from mads.tensor import ColumnParallelLinear, RMSNorm, RowParallelLinear, VocabParallelEmbedding, VocabParallelHead

DTYPE = torch.float64


def _check_exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def _layers():
    x = torch.randn(3, 5, 6, dtype=DTYPE)
    return {
        "column": (ColumnParallelLinear(6, 10, name="c", parts=(4, 6), bias=True, dtype=DTYPE), x),
        "row": (RowParallelLinear(6, 4, name="r", bias=True, dtype=DTYPE), x),
        "head": (VocabParallelHead(6, 11, name="h", dtype=DTYPE), x),
        "embedding": (VocabParallelEmbedding(11, 6, name="e", dtype=DTYPE), torch.randint(0, 11, (3, 5))),
        "norm": (RMSNorm(6, name="n", eps=0.01, dtype=DTYPE), x),
    }


@pytest.mark.parametrize("kind", ["column", "row", "head", "embedding", "norm"])
def test_weight_derivative_is_the_change_of_the_output_along_the_direction(kind):
    layer, x = _layers()[kind]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        direction = {n: torch.randn_like(p) for n, p in layer.named_parameters()}
        claimed = layer.weight_derivative(x, direction)
        before = layer(x)
        for n, p in layer.named_parameters():
            p.add_(direction[n])
        _check_exact(claimed, layer(x) - before)  # the output is linear in the parameters: the difference is the derivative
    assert claimed.abs().sum() > 1


def test_rms_norm_equals_its_formula_with_gradients():
    layer, x = _layers()["norm"]
    with torch.no_grad():
        layer.weight.normal_()
    x.requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    upstream = torch.randn(3, 5, 6, dtype=DTYPE)
    y = layer(x)
    gradients = torch.autograd.grad(y, [x, layer.weight], upstream)
    z = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 0.01) * weight
    _check_exact(y, z)
    for ours, theirs in zip(gradients, torch.autograd.grad(z, [x, weight], upstream)):
        _check_exact(ours, theirs)


@pytest.mark.parametrize("kind", ["column", "row"])
def test_t3_t4_linear_at_size_1_is_a_plain_linear(kind):
    layer, x = _layers()[kind]
    with torch.no_grad():
        layer.bias.normal_()
    _check_exact(layer(x), F.linear(x, layer.weight, layer.bias))


def test_every_parameter_is_marked_with_its_layout():
    layers = {kind: layer for kind, (layer, _) in _layers().items()}
    assert layout_of(layers["column"].weight) == layout_of(layers["column"].bias) == Layout(axis=0, parts=(4, 6))
    assert layout_of(layers["row"].weight) == Layout(axis=1) and layout_of(layers["row"].bias) == Layout()
    assert layout_of(layers["embedding"].weight) == layout_of(layers["head"].weight) == Layout(axis=0)
    assert layout_of(layers["norm"].weight) == Layout()


def test_r2_start_values_depend_on_seed_and_name_alone():
    def weight(name, seed):
        return ColumnParallelLinear(64, 128, name=name, seed=seed, std=0.5).weight

    torch.manual_seed(1)
    first = weight("a", 0)
    torch.manual_seed(2)
    assert torch.equal(first, weight("a", 0))
    assert not torch.equal(first, weight("b", 0)) and not torch.equal(first, weight("a", 1))
    assert abs(first.std() / 0.5 - 1) < 0.03 and abs(first.mean()) < 0.03
    assert torch.equal(first.double(), ColumnParallelLinear(64, 128, name="a", std=0.5, dtype=torch.float64).weight)


@pytest.mark.parametrize("bad", [-1, 11])
def test_embedding_names_a_token_outside_of_the_vocabulary(bad):
    layer, tokens = _layers()["embedding"]
    tokens[1, 2] = bad
    with pytest.raises(ValueError, match=rf"token {bad} at position \(1, 2\) .* 0 .. 10"):
        layer(tokens)


def test_parts_must_sum_to_the_width():
    with pytest.raises(ValueError, match="mlp: the parts .* sum to 9, not to out_features = 10"):
        ColumnParallelLinear(4, 10, name="mlp", parts=(4, 5))
