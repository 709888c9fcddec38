"""Keyed dropout on one rank: what a mask depends on, its gradient, and when there is none."""

import pytest
import torch

from mads.tensor.dropout import Draws, attention_seed, default_generator_seeded, hidden_dropout

WHOLE = Draws((1, 2, 3), 24, slice(0, 24))


def test_without_draws_or_at_probability_0_nothing_happens():
    x = torch.randn(3, 24, 8)
    assert hidden_dropout(x, 0.5, None, "a") is x and hidden_dropout(x, 0.0, WHOLE, "a") is x


def test_r1_a_mask_depends_on_key_and_name_alone():
    x = torch.ones(3, 24, 8)
    torch.manual_seed(1)
    first = hidden_dropout(x, 0.5, WHOLE, "a")
    torch.manual_seed(2)
    assert torch.equal(first, hidden_dropout(x, 0.5, WHOLE, "a"))
    assert torch.equal(first, hidden_dropout(x.double(), 0.5, WHOLE, "a").float()), "the dtype must not matter"
    assert torch.equal(first[1:2], hidden_dropout(x[:1], 0.5, Draws((2,), 24, slice(0, 24)), "a"))
    assert not torch.equal(first, hidden_dropout(x, 0.5, WHOLE, "b"))
    part = hidden_dropout(x[:, 6:12], 0.5, Draws((1, 2, 3), 24, slice(6, 12)), "a")
    assert torch.equal(part, first[:, 6:12])


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_r1_rate_scale_and_gradient(probability):
    draws = Draws(tuple(range(20)), 64, slice(0, 64))
    x = torch.randn(20, 64, 32, dtype=torch.float64, requires_grad=True)
    y = hidden_dropout(x, probability, draws, "a")
    kept = y != 0
    assert abs(float(kept.double().mean()) - (1 - probability)) < 0.01
    torch.testing.assert_close(y, torch.where(kept, x / (1 - probability), 0.0), rtol=1e-12, atol=0)
    upstream = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(y, x, upstream)
    torch.testing.assert_close(gradient, torch.where(kept, upstream / (1 - probability), 0.0), rtol=1e-12, atol=0)


def test_attention_seeds_differ_by_name_rows_and_place():
    seeds = [
        attention_seed(Draws(keys, 24, slice(0, 24), place), name)
        for keys in ((1, 2), (2, 1), (1, 3))
        for place in ((0, 0), (1, 0), (0, 1))
        for name in ("layers.0.attention", "layers.1.attention")
    ]
    assert len(set(seeds)) == len(seeds) == 18


def test_r6_the_default_generator_is_put_back():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with default_generator_seeded(torch.device("cpu"), 5):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected) and not torch.equal(inside, expected)
    with default_generator_seeded(torch.device("cpu"), 5):
        assert torch.equal(torch.rand(3), inside)
