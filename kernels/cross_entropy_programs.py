"""The Triton programs of mads.kernels.cross_entropy_triton. Importing this module needs triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def statistics(logits, stride, labels, lse_out, target_out, total_out, valid, BLOCK: tl.constexpr):
    """One program per row: running maximum m and sum s of exp(x - m) (Milakov and Gimelshein 2018, arXiv 1805.02867)."""
    row = tl.program_id(0).to(tl.int64)  # a row's offset may pass 2^31
    base = logits + row * stride
    label = tl.load(labels + row)
    here = (label >= 0) & (label < valid)
    target = tl.load(base + label, mask=here, other=0.0).to(tl.float32)
    m = tl.full((), float("-inf"), tl.float32)
    s = tl.full((), 0.0, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, valid, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < valid
        x = tl.load(base + column, mask=inside, other=float("-inf")).to(tl.float32)
        highest = tl.maximum(m, tl.max(x, 0))
        shift = tl.where(highest == float("-inf"), 0.0, highest)  # -inf less -inf would be NaN
        s = s * tl.exp(m - shift) + tl.sum(tl.exp(x - shift), 0)
        total += tl.sum(tl.where(inside, x, 0.0), 0)
        m = highest
    tl.store(lse_out + row, m + tl.log(s))
    tl.store(target_out + row, target)
    tl.store(total_out + row, total)


@triton.jit
def gradient(logits, stride, lse, labels, scale, width, valid, spread, on_target, twice_z, BLOCK: tl.constexpr):
    """One program per row and block of columns: every logit is read once and overwritten."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = logits + row * stride + column
    total = tl.load(lse + row)
    x = tl.load(at, mask=column < valid, other=float("-inf")).to(tl.float32)
    value = tl.exp(x - total) * (1.0 + twice_z * total) - spread
    value = tl.where(column == tl.load(labels + row), value - on_target, value)
    value = tl.where(column < valid, value * tl.load(scale + row), 0.0)
    tl.store(at, value.to(logits.dtype.element_ty), mask=column < width)
