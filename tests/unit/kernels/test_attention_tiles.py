"""Attention in tiles against SDPA with a mask over whole rows, for every plan that the cost could choose."""

from unittest import mock

import numpy as np
import pytest
import torch

from mads.kernels import attention_tiles as module
from mads.kernels.attention_tiles import by_document, by_row, plan_tiles, segment_borders, tiled_attention
from mads.kernels.packed_attention import Segments, packed_attention

ROWS = {  # (lengths of each row's documents, positions of a row); the rest is padding
    "one document a row": ([[200], [200]], 200),
    "equal documents": ([[50] * 4, [50] * 4], 200),
    "long, short and padding": ([[150, 3, 7, 1], [], [30, 131]], 170),
    "many short": ([[5, 9, 1, 13, 22, 8] * 3, [17, 4, 4, 31, 2] * 3], 180),
    "one position": ([[1], [1], []], 1),
    "padding alone": ([[], []], 70),
    "longer than a tile of 128": ([[300, 40], [20, 320]], 340),
}


def _ids(rows, length):
    ids, count = torch.full((len(rows), length), -1), 0
    for r, lengths in enumerate(rows):
        at = 0
        for n in lengths:
            ids[r, at : at + n] = count
            at, count = at + n, count + 1
    return ids


def _plans(ids, dtype=torch.float64):
    rows = ids.numpy()
    for size in (16, *module.SIZES):
        for build in (by_document, by_row):
            plan = build(rows, *segment_borders(rows), size)
            yield f"{build.__name__} {size}", module.with_biases(plan, rows.reshape(-1), dtype)
    yield "the cheapest", plan_tiles(ids, dtype)
    with mock.patch.object(module, "LONG", 100):
        yield "documents of 100 are long", plan_tiles(ids, dtype)


def _compare(ids, heads=4, kv_heads=2, dtype=torch.float64, rtol=1e-12, atol=1e-12):
    """At the documents' positions outputs and all gradients are those of the reference, whatever comes upstream at padding; at
    padding they are finite."""
    real = ids >= 0
    qkv = torch.randn(*ids.shape, heads + 2 * kv_heads, 8, dtype=dtype, requires_grad=True)
    parts = qkv.split([heads, kv_heads, kv_heads], 2)
    upstream = torch.randn(*ids.shape, heads, 8, dtype=dtype)
    expected = packed_attention(*parts, Segments.dense(ids, dtype))
    (wanted,) = torch.autograd.grad(expected, qkv, upstream, retain_graph=True)
    before = qkv.detach().clone()
    for name, plan in _plans(ids, dtype):
        out = tiled_attention(*parts, plan)
        (gradient,) = torch.autograd.grad(out, qkv, upstream, retain_graph=True)
        assert out.isfinite().all() and gradient.isfinite().all(), name
        torch.testing.assert_close(out[real], expected[real], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(gradient[real], wanted[real], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
    assert torch.equal(qkv.detach(), before), "the inputs are unchanged"


def check_tiles(case):
    torch.manual_seed(0)
    _compare(_ids(*ROWS[case]))


@pytest.mark.parametrize("case", ROWS)
def test_every_plan_equals_the_mask(case):
    check_tiles(case)


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2), (3, 1)])
def test_grouped_queries(heads, kv_heads):
    _compare(_ids(*ROWS["long, short and padding"]), heads, kv_heads)


def test_float32_and_bf16():
    ids = _ids(*ROWS["long, short and padding"])
    _compare(ids, dtype=torch.float32, rtol=1e-4, atol=1e-5)
    _compare(ids, dtype=torch.bfloat16, rtol=4e-2, atol=4e-2)


@pytest.mark.parametrize("seed", range(8))
def test_random_packings(seed):
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    length, rows = int(draw.integers(1, 300)), []
    for _ in range(int(draw.integers(1, 4))):
        lengths = 1 + draw.exponential(float(draw.choice([3, 20, 100])), 40).astype(int)
        rows.append(lengths[np.cumsum(lengths) <= length].tolist())
    _compare(_ids(rows, length))


def check_every_plan_covers_the_documents_once():
    for rows, length in ROWS.values():
        ids = _ids(rows, length)
        for name, plan in _plans(ids):
            covered = torch.zeros(ids.numel(), 1, 1)
            for tiles in plan.tiles:
                assert tiles.stride >= tiles.keys >= tiles.queries or tiles.count == 1, (name, tiles)
                tiles.view(covered, tiles.queries).add_(1)
            assert torch.equal(covered.flatten() == 1, (ids.flatten() >= 0) | (not plan.gaps)), name


def test_every_plan_covers_the_documents_once():
    check_every_plan_covers_the_documents_once()


def test_the_plan_follows_from_the_ids_and_its_size_from_the_documents():
    def scores(plan):
        return sum(t.count * t.queries * t.keys for t in plan.tiles)

    plans = {}
    for name, (rows, length) in ROWS.items():
        ids = _ids(rows, length)
        first, again = plan_tiles(ids, torch.float32), plan_tiles(ids.clone(), torch.float32)
        assert [vars(t) | {"bias": None} for t in first.tiles] == [vars(t) | {"bias": None} for t in again.tiles]
        plans[name] = first
    assert len(plans["equal documents"].tiles) == 1 and plans["equal documents"].tiles[0].bias is None
    assert plans["padding alone"].tiles == () or not plans["padding alone"].gaps
    long = plan_tiles(_ids([[2048]], 2048), torch.float32)
    assert scores(long) < 0.55 * 2048**2, "half of the scores are of the future"
    packed = plan_tiles(_ids([[128] * 4] * 8, 512), torch.float32)
    assert scores(packed) <= 8 * 512**2 / 4 and len(packed.tiles) <= 2
    (alone,) = plan_tiles(_ids([[4096]], 4096), torch.float32).tiles
    assert alone.queries == alone.keys == 4096 and alone.bias is None
    masks = {t.bias.untyped_storage().data_ptr(): t.bias.untyped_storage().nbytes() for t in long.tiles if t.bias is not None}
    assert sum(masks.values()) <= 128 * 2048 * 4, "one mask for all tiles"


def test_nothing_is_drawn_and_dropout_keeps_the_mask_over_whole_rows():
    ids = _ids(*ROWS["many short"])
    assert Segments.build(ids, "sdpa", torch.float32).bias is None
    dense = Segments.build(ids, "sdpa", torch.float32, dropout=True)
    assert dense.plan is None and dense.bias.shape == (2, 1, 180, 180)
