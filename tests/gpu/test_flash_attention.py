"""flash-attn's variable-length kernel against the SDPA path in float32, forward and gradients."""

import pytest
import torch

from mads.kernels.packed_attention import Segments, packed_attention


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [2, 8])
def test_flash_equals_sdpa(kv_heads):
    pytest.importorskip("flash_attn")
    lengths = [[100, 28, 61], [189]]  # the rest of each row is padding
    ids = torch.full((2, 192), -1)
    count = 0
    for row, samples in enumerate(lengths):
        at = 0
        for n in samples:
            ids[row, at : at + n] = count
            at, count = at + n, count + 1
    ids = ids.cuda()
    shape = lambda heads: torch.randn(2, 192, heads, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)  # noqa: E731
    q, k, v = shape(8), shape(kv_heads), shape(kv_heads)
    upstream = torch.randn_like(q)
    exact = [t.detach().float().requires_grad_() for t in (q, k, v)]
    expected = packed_attention(*exact, Segments.build(ids, "sdpa", torch.float32))
    out = packed_attention(q, k, v, Segments.build(ids, "flash", torch.bfloat16))
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    wanted = torch.autograd.grad(expected, exact, upstream.float())
    for ours, theirs in zip(torch.autograd.grad(out, [q, k, v], upstream), wanted):
        torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=4e-2)
