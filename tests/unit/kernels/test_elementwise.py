"""RMSNorm, SwiGLU and RoPE in few passes against their references, forward and gradients."""

import pytest
import torch

from mads.kernels.elementwise import rms_norm, rms_norm_reference, swiglu, swiglu_reference
from mads.model.rope import apply_rope, rope_tables, split_and_turn


def _leaf(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def _equal(ours, theirs, inputs, rtol, atol=1e-12):
    """Outputs, and gradients for random upstream gradients. atol=None: rtol of the greatest value of each."""
    upstream = [torch.randn_like(x) for x in theirs]
    a = [*ours, *torch.autograd.grad(ours, inputs, upstream)]
    b = [*theirs, *torch.autograd.grad(theirs, inputs, upstream)]
    for mine, other in zip(a, b):
        least = rtol * float(other.detach().abs().max()) if atol is None else atol
        torch.testing.assert_close(mine, other, rtol=rtol, atol=least)


def check_rms_norm():
    torch.manual_seed(0)
    x, weight = _leaf(2, 5, 7), _leaf(7)
    _equal([rms_norm(x, weight, 1e-3)], [rms_norm_reference(x, weight, 1e-3)], [x, weight], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])  # of eps, and far from it
def test_rms_norm_equals_pytorchs(dtype, scale):
    x, weight = (scale * _leaf(3, 4, 96, dtype=dtype)).detach().requires_grad_(), _leaf(96, dtype=dtype)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    _equal([rms_norm(x, weight, 1e-5)], [rms_norm_reference(x, weight, 1e-5)], [x, weight], rtol, None)


def test_rms_norm_of_zeros_of_rows_apart_and_its_gradient_by_differences():
    weight = _leaf(6)
    assert torch.equal(rms_norm(torch.zeros(2, 6, dtype=torch.float64), weight, 1e-5), torch.zeros(2, 6, dtype=torch.float64))
    x = _leaf(4, 3, 6).transpose(0, 1)  # rows that do not follow each other
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-2), (x.detach().requires_grad_(), weight))
    check_rms_norm()


def test_rms_norm_leaves_bf16_to_pytorch():
    x, weight = _leaf(3, 8, dtype=torch.bfloat16), _leaf(8, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_swiglu_is_the_reference_bit_for_bit(dtype):
    gate_up = _leaf(3, 5, 2 * 24, dtype=dtype)
    _equal([swiglu(gate_up)], [swiglu_reference(gate_up)], [gate_up], 0.0, 0.0)


def test_swiglus_gradient_by_differences():
    assert torch.autograd.gradcheck(swiglu, (_leaf(2, 3, 8),))


def _by_slices(qkv, cos, sin, heads, kv_heads):
    turned = apply_rope(qkv[:, :, : heads + kv_heads], cos, sin)
    return *turned.split([heads, kv_heads], 2), qkv[:, :, heads + kv_heads :]


def check_split_and_turn():
    torch.manual_seed(0)
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 300, 2, 3, 4]])
    for heads, kv_heads in ((4, 4), (4, 2), (3, 1)):
        qkv = _leaf(2, 5, heads + 2 * kv_heads, 6)
        tables = rope_tables(positions, 6, 100.0, torch.float64)
        arguments = (qkv, *tables, heads, kv_heads)
        _equal(split_and_turn(*arguments), _by_slices(*arguments), [qkv], 1e-12)


def test_split_and_turn_equals_slices_and_apply_rope():
    check_split_and_turn()
    tables = rope_tables(torch.tensor([[0, 1, 5]]), 4, 10.0, torch.float64)
    assert torch.autograd.gradcheck(lambda x: split_and_turn(x, *tables, 2, 1), (_leaf(1, 3, 4, 4),))
    narrow = _leaf(1, 3, 4, 4, dtype=torch.bfloat16)
    arguments = (narrow, *(t.bfloat16() for t in tables), 2, 1)
    _equal(split_and_turn(*arguments), _by_slices(*arguments), [narrow], 2e-2, 2e-2)


def test_only_what_went_in_is_kept():
    """Bytes that autograd holds, beside the inputs: nothing, and one number per position for the norm."""
    kept = []
    x, weight, gate_up = (
        _leaf(2, 8, 64, dtype=torch.float32),
        _leaf(64, dtype=torch.float32),
        _leaf(2, 8, 48, dtype=torch.float32),
    )
    given = {t.untyped_storage().data_ptr() for t in (x, weight, gate_up)}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in given:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = [swiglu(gate_up), rms_norm(x, weight, 1e-5)]
    assert [tensor.numel() for tensor in kept] == [2 * 8], [tensor.shape for tensor in kept]
    assert all(result.requires_grad for result in results)
