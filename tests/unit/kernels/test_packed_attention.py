"""Packed attention (SDPA path) against attention written out, one sample at a time; and the choice of the backend."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mads.kernels import packed_attention as module
from mads.kernels.packed_attention import Segments, choose_backend, flash_unavailable, packed_attention

CPU = torch.device("cpu")


def _written_out(q, k, v, ids):
    """Attention by its formula, one query at a time."""
    batch, length, heads, width = q.shape
    out = torch.zeros_like(q)
    for b in range(batch):
        for i in range(length):
            seen = [j for j in range(i + 1) if ids[b, j] == ids[b, i]]
            for h in range(heads):
                g = h // (heads // k.shape[2])
                scores = torch.stack([q[b, i, h] @ k[b, j, g] for j in seen]) / math.sqrt(width)
                out[b, i, h] = torch.softmax(scores, 0) @ v[b, seen, g]
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_sdpa_equals_attention_written_out(kv_heads):
    ids = torch.tensor([[0, 0, 0, 1, 1, -1, -1], [2, 3, 3, 3, 3, 3, 3]])
    shape = lambda heads: torch.randn(2, 7, heads, 4, dtype=torch.float64, requires_grad=True)  # noqa: E731
    q, k, v = shape(4), shape(kv_heads), shape(kv_heads)
    out = packed_attention(q, k, v, Segments.build(ids, "sdpa", q.dtype))
    expected = _written_out(q, k, v, ids)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(y, [q, k, v], upstream) for y in (out, expected))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_rows_of_one_sample_need_no_mask_where_there_are_no_tiles(kv_heads, monkeypatch):
    monkeypatch.setattr(module, "tiles_run", lambda device, dtype: False)
    ids = torch.tensor([[0] * 7, [1] * 7, [-1] * 7])
    segments, dense = Segments.build(ids, "sdpa", torch.float64), Segments.dense(ids, torch.float64)
    assert segments.bias is None and segments.plan is None
    q, k, v = (torch.randn(3, 7, heads, 4, dtype=torch.float64) for heads in (4, kv_heads, kv_heads))
    torch.testing.assert_close(packed_attention(q, k, v, segments), packed_attention(q, k, v, dense), rtol=1e-12, atol=1e-12)
    ids[1, 6] = -1
    assert torch.equal(Segments.build(ids, "sdpa", torch.float64).bias, Segments.dense(ids, torch.float64).bias)


def test_tiles_give_way_where_the_user_forbids_their_kernel():
    ids = torch.tensor([[0, 0, 1]])
    assert Segments.build(ids, "sdpa", torch.float32).plan is not None
    with sdpa_kernel(SDPBackend.MATH):
        assert Segments.build(ids, "sdpa", torch.float32).bias is not None


def test_segments_are_read_where_they_are_and_used_where_the_queries_are():
    """A meta tensor has no values to read: what the plan needs comes from the ids on the CPU."""
    ids = torch.tensor([[0, 0, 0, 1, 1, -1, -1], [2] * 7])
    flash = Segments.build(ids, "flash", torch.bfloat16, torch.device("meta"))
    assert flash.boundaries.device.type == "meta" and flash.longest == 7
    assert Segments.build(ids, "sdpa", torch.bfloat16, torch.device("meta")).bias.device.type == "meta"


def test_flash_boundaries_are_where_samples_rows_and_padding_start():
    ids = torch.tensor([[0, 0, 0, 1, 1, -1, -1], [-1, -1, -1, -1, -1, -1, -1], [2, 3, 3, 3, 3, 3, 3]])
    segments = Segments.build(ids, "flash", torch.bfloat16)
    assert segments.boundaries.tolist() == [0, 3, 5, 7, 14, 15, 21] and segments.boundaries.dtype == torch.int32
    assert segments.longest == 7 and segments.bias is None


def test_auto_takes_sdpa_where_flash_cannot_run_and_flash_says_why(monkeypatch):
    assert choose_backend("auto", CPU, torch.bfloat16, 64) == "sdpa"
    assert choose_backend("sdpa", CPU, torch.bfloat16, 64) == "sdpa"
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="flash cannot run here: the package flash-attn is not installed"):
        choose_backend("flash", CPU, torch.bfloat16, 64)
    with pytest.raises(ValueError, match="'fast' is none of auto, sdpa, flash"):
        choose_backend("fast", CPU, torch.bfloat16, 64)


def test_flash_is_refused_by_device_dtype_age_and_head_size(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    cuda = torch.device("cuda")
    assert flash_unavailable(cuda, torch.bfloat16, 64) is None
    assert choose_backend("auto", cuda, torch.float16, 128) == "flash"
    assert "CUDA device" in flash_unavailable(CPU, torch.bfloat16, 64)
    assert "torch.float32" in flash_unavailable(cuda, torch.float32, 64)
    assert "not 20" in flash_unavailable(cuda, torch.bfloat16, 20)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    assert "T4 is older" in flash_unavailable(cuda, torch.bfloat16, 64)
