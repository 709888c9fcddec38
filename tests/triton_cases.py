"""The Triton kernels in Triton's interpreter: test_cross_entropy_triton.py runs this file with TRITON_INTERPRET=1."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mads.kernels import cross_entropy_triton, linear_cross_entropy
from mads.kernels.cross_entropy_triton import logits_gradient_, row_statistics
from mads.tensor import Objective, Targets, vocab_parallel_cross_entropy

# (rows, columns, valid columns, columns of a block, distance of two rows)
SHAPES = [(5, 70, 70, 32, 70), (4, 64, 50, 64, 80), (3, 33, 31, 16, 33), (2, 7, 1, 16, 9)]


def _case(shape, dtype, seed=0):
    rows, columns, valid, block, stride = shape
    generator = torch.Generator().manual_seed(seed)
    store = torch.randn(rows, stride, generator=generator) * 4
    logits = store.to(dtype)[:, :columns]
    logits[:, valid:] = float("nan")  # padding must not be read
    labels = torch.randint(0, valid, (rows,), generator=generator)
    return logits, labels, generator


@pytest.fixture(autouse=True)
def small_blocks(request, monkeypatch):
    shape = request.node.callspec.params.get("shape") if hasattr(request.node, "callspec") else None
    monkeypatch.setattr(cross_entropy_triton, "BLOCK", shape[3] if shape else 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_statistics_equal_torchs(shape, dtype):
    logits, labels, _ = _case(shape, dtype)
    valid = shape[2]
    labels[0], labels[1] = -100, valid  # none; on the next rank
    exact = logits[:, :valid].double()
    lse, target, total = row_statistics(logits, labels, valid)
    torch.testing.assert_close(lse.double(), exact.logsumexp(-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(total.double(), exact.sum(-1), rtol=1e-5, atol=1e-5)
    expected = [0.0, 0.0] + [float(exact[i, labels[i]]) for i in range(2, len(labels))]
    assert target.tolist() == expected
    assert lse.dtype == target.dtype == total.dtype == torch.float32


def test_statistics_of_extreme_rows():
    rows = torch.full((4, 40), -torch.inf)
    rows[0, 37] = 2.0  # the first blocks hold nothing finite
    rows[1] = 1e30
    rows[2, 3] = torch.nan
    lse, _, _ = row_statistics(rows, torch.zeros(4, dtype=torch.int64), 40)
    assert lse[0] == 2.0 and lse[1] == torch.tensor(1e30) and lse[2].isnan() and lse[3] == -torch.inf
    lse, target, total = row_statistics(rows, torch.zeros(4, dtype=torch.int64), 0)  # a rank with padding only
    assert lse.tolist() == [-torch.inf] * 4 and target.tolist() == total.tolist() == [0.0] * 4


@pytest.mark.parametrize("smoothing, z", [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_equals_autograd_of_torchs_loss(shape, smoothing, z):
    logits, labels, generator = _case(shape, torch.float32)
    columns, valid = shape[1:3]
    labels[0] = -100
    upstream = torch.randn(len(labels), generator=generator)
    exact = logits[:, :valid].double().requires_grad_()
    loss = F.cross_entropy(exact, labels, reduction="none", label_smoothing=smoothing)
    (loss + z * exact.logsumexp(-1).square())[1:].backward(upstream[1:].double())
    scale = torch.where(labels == -100, 0.0, upstream)
    lse, _, _ = row_statistics(logits, labels, valid)
    beyond = logits.as_strided((len(labels), shape[4]), (shape[4], 1))[:, columns:].clone()
    assert logits_gradient_(logits, lse, labels, scale, valid, valid, smoothing, z) is logits
    torch.testing.assert_close(logits[:, :valid].double(), exact.grad, rtol=1e-5, atol=1e-6)
    assert (logits[:, valid:] == 0).all() and (logits[0] == 0).all()
    # What lies between two rows is not the kernel's.
    assert torch.equal(logits.as_strided((len(labels), shape[4]), (shape[4], 1))[:, columns:], beyond)


@pytest.mark.parametrize("smoothing, z", [(0.0, 0.0), (0.1, 1e-2)])
def test_slices_of_two_ranks_make_the_reference(smoothing, z):
    """A vocabulary of 61 in two slices of 32: lse and target meet as an all-reduce would make them meet."""
    torch.manual_seed(1)
    whole, labels, upstream = torch.randn(9, 61) * 3, torch.randint(0, 61, (9,)), torch.randn(9)
    labels[4] = -100
    reference = whole.clone().requires_grad_()
    total, loss = vocab_parallel_cross_entropy(reference, torch.eye(61), Targets(labels, upstream, Objective(smoothing, z)), 61)
    total.backward()
    slices = [whole[:, :32].clone(), F.pad(whole[:, 32:], (0, 3), value=float("nan"))]
    told = [row_statistics(part, labels - 32 * r, (32, 29)[r]) for r, part in enumerate(slices)]
    lse = torch.logsumexp(torch.stack([t[0] for t in told]), 0)
    target, summed = (sum(t[i] for t in told) for i in (1, 2))
    ours = (1 - smoothing) * (lse - target) + smoothing * (lse - summed / 61) + z * lse.square()
    torch.testing.assert_close(torch.where(labels == -100, 0.0, ours), loss, rtol=1e-5, atol=1e-5)
    scale = torch.where(labels == -100, 0.0, upstream)
    for r, part in enumerate(slices):
        logits_gradient_(part, lse, labels - 32 * r, scale, (32, 29)[r], 61, smoothing, z)
    torch.testing.assert_close(torch.cat(slices, 1)[:, :61], reference.grad, rtol=1e-5, atol=1e-6)
    assert (slices[1][:, 29:] == 0).all()


@pytest.mark.parametrize("smoothing, z", [(0.0, 0.0), (0.1, 1e-2)])
def test_the_head_is_the_same_on_tritons_rows(monkeypatch, smoothing, z):
    monkeypatch.setattr(linear_cross_entropy, "_CPU_ROWS", 4)
    torch.manual_seed(2)
    labels, weights, along = torch.randint(0, 61, (2, 5)), torch.randn(2, 5), torch.randn(61, 8)
    labels[1, 2] = -100
    start = torch.randn(2, 5, 8), torch.randn(61, 8)
    results = []
    for available in (False, True):
        monkeypatch.setattr(cross_entropy_triton, "available", lambda device, answer=available: answer)
        x, weight = (t.clone().requires_grad_() for t in start)
        targets = Targets(labels, weights, Objective(smoothing, z))
        total, losses = vocab_parallel_cross_entropy(x, weight, targets, 61)
        total.backward()
        _, _, products = vocab_parallel_cross_entropy(x, weight, replace(targets, direction=along), 61)
        results.append((total.detach(), losses, x.grad, weight.grad, products))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
