"""The Triton cross entropy in bf16 against torch's in float64, at the sizes of real heads."""

import pytest
import torch
import torch.nn.functional as F

from mads.kernels.cross_entropy_triton import available, logits_gradient_, row_statistics


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("smoothing, z", [(0.0, 0.0), (0.1, 1e-2)])
@pytest.mark.parametrize("rows, vocabulary, columns", [(1000, 32000, 32000), (257, 50257, 50304)])
def test_two_slices_equal_torchs_loss_and_gradient(rows, vocabulary, columns, smoothing, z, dtype):
    assert available("cuda")
    torch.manual_seed(0)
    whole = (torch.randn(rows, columns, device="cuda") * 3).to(dtype)
    whole[:, vocabulary:] = torch.nan
    labels = torch.randint(0, vocabulary, (rows,), device="cuda")
    labels[::7] = -100
    upstream = torch.where(labels == -100, 0.0, torch.randn(rows, device="cuda"))
    exact = whole[:, :vocabulary].double().requires_grad_()
    loss = F.cross_entropy(exact, labels, reduction="none", label_smoothing=smoothing)
    loss = torch.where(labels == -100, 0.0, loss + z * exact.logsumexp(-1).square())
    loss.backward(upstream.double())
    half = columns // 2
    parts = [(whole[:, r * half : (r + 1) * half], labels - r * half, min(half, vocabulary - r * half)) for r in range(2)]
    told = [row_statistics(*part) for part in parts]
    lse = torch.logsumexp(torch.stack([t[0] for t in told]), 0)
    target, total = (sum(t[i] for t in told) for i in (1, 2))
    ours = (1 - smoothing) * (lse - target) + smoothing * (lse - total / vocabulary) + z * lse.square()
    torch.testing.assert_close(torch.where(labels == -100, 0.0, ours).double(), loss.detach(), rtol=1e-5, atol=1e-5)
    for logits, local, valid in parts:
        logits_gradient_(logits, lse, local, upstream, valid, vocabulary, smoothing, z)
    # bf16 keeps 8 bits: what is stored is the exact value rounded once
    rtol = 2**-8 * 1.1 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(whole[:, :vocabulary].double(), exact.grad, rtol=rtol, atol=1e-7)
    assert not whole[:, vocabulary:].any()
