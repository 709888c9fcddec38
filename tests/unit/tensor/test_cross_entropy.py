"""Cross entropy on one rank against F.cross_entropy."""

import pytest
import torch
import torch.nn.functional as F

import mads.tensor.cross_entropy as module
from mads.tensor import Objective, vocab_parallel_cross_entropy

VOCAB = 131


def _case(dtype, scale=3.0):
    logits = (torch.randn(3, 5, VOCAB, dtype=torch.float64) * scale).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCAB, (3, 5))
    labels[0, 0], labels[2, 4], labels[1, 1] = 0, VOCAB - 1, -100
    return logits, labels, torch.randn(3, 5, dtype=torch.float64)


def _reference(logits, labels, upstream, smoothing=0.0, z_loss=0.0):
    exact = logits.detach().double().requires_grad_()
    flat = exact.reshape(-1, VOCAB)
    loss = F.cross_entropy(flat, labels.reshape(-1), reduction="none", label_smoothing=smoothing).view(labels.shape)
    loss = loss + z_loss * torch.logsumexp(exact, -1).square() * (labels != -100)
    return loss, torch.autograd.grad(loss, exact, upstream)[0]


@pytest.mark.parametrize("chunk", [1, 2 * VOCAB, 1 << 18])
@pytest.mark.parametrize(
    "dtype, scale, tolerance", [(torch.float64, 3.0, 1e-12), (torch.float64, 1e4, 1e-10), (torch.float32, 3.0, 1e-5)]
)
def test_v3_loss_and_gradient_equal_the_plain_cross_entropy(monkeypatch, chunk, dtype, scale, tolerance):
    monkeypatch.setitem(module._CHUNK_ELEMENTS, "cpu", chunk)
    logits, labels, upstream = _case(dtype, scale)
    before = logits.detach().clone()
    loss = vocab_parallel_cross_entropy(logits, labels, VOCAB)
    loss.backward(upstream.to(loss.dtype))
    expected, gradient = _reference(logits, labels, upstream)
    assert loss.dtype == dtype and loss[1, 1] == 0 and torch.all(logits.grad[1, 1] == 0)
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=tolerance, atol=tolerance)
    assert torch.equal(logits.detach(), before)


def test_v3_bf16_logits_accumulate_in_float32():
    logits, labels, upstream = _case(torch.bfloat16)
    loss = vocab_parallel_cross_entropy(logits, labels, VOCAB)
    loss.backward(upstream.float())
    expected, gradient = _reference(logits, labels, upstream)
    assert loss.dtype == torch.float32 and logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)  # far below the 2^-8 of bf16
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=2**-8, atol=1e-6)  # rounded once, at the end


def test_v3_a_batch_without_targets_has_loss_and_gradient_zero():
    logits, labels, _ = _case(torch.float64)
    loss = vocab_parallel_cross_entropy(logits, torch.full_like(labels, -100), VOCAB)
    loss.sum().backward()
    assert torch.all(loss == 0) and torch.all(logits.grad == 0)


def test_v3_gradcheck():
    logits, labels, _ = _case(torch.float64)
    assert torch.autograd.gradcheck(lambda x: vocab_parallel_cross_entropy(x, labels, VOCAB), [logits])


@pytest.mark.parametrize("chunk", [1, 1 << 18])
@pytest.mark.parametrize("smoothing, z_loss", [(0.1, 0.0), (0.0, 0.01), (0.3, 0.1)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
def test_v4_smoothing_as_torch_defines_it_and_z_loss(monkeypatch, chunk, smoothing, z_loss, dtype, tolerance):
    monkeypatch.setitem(module._CHUNK_ELEMENTS, "cpu", chunk)
    logits, labels, upstream = _case(dtype)
    before = logits.detach().clone()
    loss = vocab_parallel_cross_entropy(logits, labels, VOCAB, objective=Objective(smoothing, z_loss))
    loss.backward(upstream.to(loss.dtype))
    expected, gradient = _reference(logits, labels, upstream, smoothing, z_loss)
    torch.testing.assert_close(loss.double(), expected, rtol=min(tolerance, 1e-5), atol=min(tolerance, 1e-5))
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=tolerance, atol=min(tolerance, 1e-5))
    assert loss[1, 1] == 0 and torch.all(logits.grad[1, 1] == 0) and torch.equal(logits.detach(), before)


def test_v4_gradcheck_with_both():
    logits, labels, _ = _case(torch.float64)
    objective = Objective(label_smoothing=0.2, z_loss=0.05)
    assert torch.autograd.gradcheck(lambda x: vocab_parallel_cross_entropy(x, labels, VOCAB, objective=objective), [logits])


@pytest.mark.parametrize("fields", [{"label_smoothing": 1.0}, {"label_smoothing": -0.1}, {"z_loss": -1.0}])
def test_an_objective_out_of_range_is_refused_with_its_numbers(fields):
    (name, value), *_ = fields.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Objective(**fields)


@pytest.mark.parametrize("bad", [VOCAB, -1])
def test_a_label_outside_of_the_vocabulary_is_named(bad):
    logits, labels, _ = _case(torch.float64)
    labels[2, 0] = bad
    with pytest.raises(ValueError, match=rf"label {bad} at position \(2, 0\)"):
        vocab_parallel_cross_entropy(logits, labels, VOCAB)
