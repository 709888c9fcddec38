"""Keyed dropout with CUDA's generators, and the objective's kernels, on one GPU."""

import pytest
import torch
import torch.nn.functional as F
from model_cases import fields, small_batch, small_config

from mads.model import Decoder
from mads.model.placement import Placement
from mads.tensor import Objective, Targets, vocab_parallel_cross_entropy
from mads.tensor.dropout import Draws, hidden_dropout


@pytest.mark.gpu
def test_r1_hidden_masks_are_slices_and_move_no_generator():
    x = torch.ones(3, 24, 64, device="cuda")
    before = torch.cuda.get_rng_state()
    whole = hidden_dropout(x, 0.25, Draws((1, 2, 1), 24, slice(0, 24)), "a")
    part = hidden_dropout(x[:, 6:12], 0.25, Draws((1, 2, 1), 24, slice(6, 12)), "a")
    assert torch.equal(part, whole[:, 6:12]) and torch.equal(whole[0], whole[2]) and not torch.equal(whole[0], whole[1])
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert abs(float((whole == 0).float().mean()) - 0.25) < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("attention, dtype", [("sdpa", torch.float32), ("flash", torch.bfloat16)])
def test_r4_recomputed_masks_are_the_same(attention, dtype):
    if attention == "flash":
        pytest.importorskip("flash_attn")
    config = small_config(hidden_size=256, attention=attention, hidden_dropout=0.2, attention_dropout=0.3, init_std=0.05)
    results = []
    for recompute in ("none", "full"):
        model = Decoder(config, Placement(recompute=recompute), seed=3, device="cuda", dtype=dtype)
        before = torch.cuda.get_rng_state()
        total, loss = model(*(field.cuda() for field in fields(small_batch())), draws=torch.tensor([7, 8]))
        total.backward()
        assert torch.equal(torch.cuda.get_rng_state(), before)
        results.append((loss, model.layers[0].attention.qkv.weight.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)  # kernels may add in another order
    _, plain = Decoder(config, seed=3, device="cuda", dtype=dtype)(*(field.cuda() for field in fields(small_batch())))
    assert not torch.allclose(plain, results[0][0])


@pytest.mark.gpu
def test_v4_objective_equals_torchs():
    logits = (torch.randn(5, 7, 131, device="cuda") * 3).bfloat16().requires_grad_()
    labels, upstream = torch.randint(0, 131, (5, 7), device="cuda"), torch.randn(5, 7, device="cuda")
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact.view(-1, 131), labels.view(-1), reduction="none", label_smoothing=0.1).view(5, 7)
    expected = expected + 1e-2 * exact.logsumexp(-1).square()
    expected.backward(upstream.double())
    identity = torch.eye(131, device="cuda").bfloat16()  # products with it are exact
    total, loss = vocab_parallel_cross_entropy(logits, identity, Targets(labels, upstream, Objective(0.1, 1e-2)), 131)
    total.backward()
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2**-7, atol=1e-5)
