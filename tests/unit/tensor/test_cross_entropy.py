"""The head's cross entropy on one rank against F.cross_entropy of whole logits."""

import pytest
import torch
import torch.nn.functional as F

import mads.kernels.linear_cross_entropy as kernel
from mads.tensor import PLAIN, Objective, Targets, vocab_parallel_cross_entropy

VOCAB, HIDDEN = 131, 24


def _case(dtype=torch.float64, scale=3.0):
    """x, W, labels, weights: with the first and the last token, and a position without a target."""
    x = torch.randn(3, 5, HIDDEN, dtype=torch.float64).to(dtype).requires_grad_()
    weight = (torch.randn(VOCAB, HIDDEN, dtype=torch.float64) * scale / HIDDEN**0.5).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCAB, (3, 5))
    labels[0, 0], labels[2, 4], labels[1, 1] = 0, VOCAB - 1, -100
    return x, weight, labels, torch.randn(3, 5, dtype=torch.float64)


def _reference(x, weight, labels, weights, objective=PLAIN):
    """(losses, dX, dW) in float64, by torch."""
    x, weight = (t.detach().double().requires_grad_() for t in (x, weight))
    logits = (x @ weight.t()).flatten(0, 1)
    losses = F.cross_entropy(logits, labels.reshape(-1), reduction="none", label_smoothing=objective.label_smoothing)
    losses = (losses + objective.z_loss * logits.logsumexp(-1).square() * (labels.reshape(-1) != -100)).view(labels.shape)
    return losses.detach(), *torch.autograd.grad((losses * weights).sum(), (x, weight))


OBJECTIVES = [PLAIN, Objective(0.1, 0.0), Objective(0.0, 0.01), Objective(0.3, 0.1)]


@pytest.mark.parametrize("rows", [1, 7, 256])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "dtype, scale, tolerance", [(torch.float64, 3.0, 1e-12), (torch.float64, 1e4, 1e-10), (torch.float32, 3.0, 2e-5)]
)
def test_v3_v4_losses_and_gradients_equal_the_plain_ones(monkeypatch, rows, objective, dtype, scale, tolerance):
    monkeypatch.setattr(kernel, "_CPU_ROWS", rows)
    x, weight, labels, weights = _case(dtype, scale)
    before = x.detach().clone(), weight.detach().clone()
    total, losses = vocab_parallel_cross_entropy(x, weight, Targets(labels, weights, objective), VOCAB)
    (3 * total).backward()
    expected, dx, dw = _reference(x, weight, labels, weights, objective)
    assert losses.dtype == total.dtype == dtype and not losses.requires_grad
    assert losses[1, 1] == 0 and torch.all(x.grad[1, 1] == 0)
    pairs = [(losses, expected), (total.detach(), (expected * weights).sum()), (x.grad, 3 * dx), (weight.grad, 3 * dw)]
    for found, wanted in pairs:
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))
    assert torch.equal(x.detach(), before[0]) and torch.equal(weight.detach(), before[1])


@pytest.mark.parametrize("rows", [2, 256])
def test_v3_bf16_accumulates_in_float32(monkeypatch, rows):
    monkeypatch.setattr(kernel, "_CPU_ROWS", rows)
    x, weight, labels, weights = _case(torch.bfloat16)
    total, losses = vocab_parallel_cross_entropy(x, weight, Targets(labels, weights), VOCAB)
    total.backward()
    logits = (x @ weight.t()).detach()  # rounded to bf16 as the head's product is
    exact = F.cross_entropy(logits.double().flatten(0, 1), labels.reshape(-1), reduction="none").view(3, 5)
    assert losses.dtype == torch.float32 and x.grad.dtype == weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)  # far below the 2^-8 of bf16
    _, dx, dw = _reference(x, weight, labels, weights)
    for found, expected in ((x.grad, dx), (weight.grad, dw)):
        torch.testing.assert_close(found.double(), expected, rtol=2**-5, atol=2**-6 * float(expected.abs().max()))


def test_without_weights_every_target_counts_once():
    x, weight, labels, _ = _case()
    total, losses = vocab_parallel_cross_entropy(x, weight, Targets(labels), VOCAB)
    total.backward()
    expected, dx, dw = _reference(x, weight, labels, torch.ones(3, 5, dtype=torch.float64))
    torch.testing.assert_close(total.detach(), expected.sum())
    torch.testing.assert_close(x.grad, dx), torch.testing.assert_close(weight.grad, dw)
    with torch.no_grad():
        again, same = vocab_parallel_cross_entropy(x, weight, Targets(labels), VOCAB)
    assert not again.requires_grad and torch.equal(again, total) and torch.equal(same, losses)


def test_v3_a_batch_without_targets_has_loss_and_gradient_zero():
    x, weight, labels, weights = _case()
    total, losses = vocab_parallel_cross_entropy(x, weight, Targets(torch.full_like(labels, -100), weights), VOCAB)
    total.backward()
    assert torch.all(losses == 0) and torch.all(x.grad == 0) and torch.all(weight.grad == 0)


def test_no_gradient_is_computed_for_what_needs_none():
    x, weight, labels, weights = _case()
    expected, dx, dw = _reference(x, weight, labels, weights)
    for wanted, other, gradient in ((x, weight, dx), (weight, x, dw)):
        other.requires_grad_(False)
        total, _ = vocab_parallel_cross_entropy(x, weight, Targets(labels, weights), VOCAB)
        total.backward()
        torch.testing.assert_close(wanted.grad, gradient), other.requires_grad_(True)
        assert other.grad is None
        wanted.grad = None


def test_the_gradients_are_handed_on_once():
    x, weight, labels, weights = _case()
    total, _ = vocab_parallel_cross_entropy(x, weight, Targets(labels, weights), VOCAB)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("rows", [4, 256])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_products_are_those_of_each_positions_gradient(monkeypatch, rows, objective):
    monkeypatch.setattr(kernel, "_CPU_ROWS", rows)
    x, weight, labels, weights = _case()
    direction = torch.randn_like(weight)
    total, losses, products = vocab_parallel_cross_entropy(x, weight, Targets(labels, weights, objective, direction), VOCAB)
    for row, column in ((0, 0), (1, 1), (2, 3)):
        alone = torch.zeros(3, 5, dtype=torch.float64)
        alone[row, column] = weights[row, column]
        _, _, dw = _reference(x, weight, labels, alone, objective)
        torch.testing.assert_close(products[row, column], (dw * direction).sum(), rtol=1e-12, atol=1e-12)
    (dx,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(dx, _reference(x, weight, labels, weights, objective)[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fields", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"z_loss": -1.0}])
def test_an_objective_out_of_range_is_refused_with_its_numbers(fields):
    (name, value), *_ = fields.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Objective(**fields)


@pytest.mark.parametrize("bad", [VOCAB, -1])
def test_a_label_outside_of_the_vocabulary_is_named(bad):
    x, weight, labels, _ = _case()
    labels[2, 0] = bad
    with pytest.raises(ValueError, match=rf"label {bad} at position \(2, 0\)"):
        vocab_parallel_cross_entropy(x, weight, Targets(labels), VOCAB)


def test_labels_of_another_shape_are_named():
    x, weight, labels, _ = _case()
    with pytest.raises(ValueError, match=r"hidden states of shape \(3, 5, 24\) with labels of shape \(3, 4\)"):
        vocab_parallel_cross_entropy(x, weight, Targets(labels[:, :4]), VOCAB)
