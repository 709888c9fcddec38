"""The formulas of mads/doctor/activations.py against the bytes that autograd really keeps."""

import pytest
import torch
from saved_bytes import counted, model_config, setting
from torch.nn.attention import SDPBackend, sdpa_kernel

from mads.doctor.activations import Setting, entry_bytes, exit_bytes, layer_bytes, layer_work_bytes, shared_bytes
from mads.kernels.packed_attention import Segments
from mads.model.placement import Placement

SHAPES = {
    "heads of their own": (dict(num_key_value_heads=8), 2, 48),
    "grouped": ({}, 2, 48),
    "one kv head, odd": (dict(hidden_size=96, num_attention_heads=6, num_key_value_heads=1, ffn_hidden_size=250), 3, 33),
    "long": (dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, vocab_size=1000), 1, 200),
}


@pytest.mark.parametrize("kernel", ["fused", "math", "tiles"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_keeps_what_the_formula_says(shape, kernel, monkeypatch):
    """Tiles, on a CPU, keep as much as the fused kernel with a mask, which accelerators run, less the mask."""
    if kernel == "fused":
        dense = classmethod(lambda cls, ids, backend, dtype, *rest: cls.dense(ids, dtype))
        monkeypatch.setattr(Segments, "build", dense)
    changes, rows, length = SHAPES[shape]
    config = model_config(**changes)
    with sdpa_kernel(SDPBackend.MATH if kernel == "math" else SDPBackend.FLASH_ATTENTION):
        layer, rest = counted(config, Placement(), rows, length)
    s = setting(config, rows, length, kernel="math" if kernel == "math" else "fused")
    assert layer_bytes(s) == pytest.approx(layer, rel=1e-3)
    mask = 0 if kernel == "fused" else rows * length**2 * 4  # math: held by the forward pass, but not saved
    assert entry_bytes(s) + shared_bytes(s) + exit_bytes(s) - mask == pytest.approx(rest, rel=1e-3)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_recomputation_and_dropout_keep_what_the_formula_says(recompute, dropout):
    config = model_config(hidden_dropout=dropout)
    layer, _ = counted(config, Placement(recompute=recompute), draws=torch.arange(2) if dropout else None)
    s = setting(config, recompute=recompute)
    assert layer_bytes(s) == pytest.approx(layer, rel=1e-3)
    assert layer_bytes(s, "full") < layer_bytes(s, "selective") < layer_bytes(s, "none")


def test_bf16_halves_all_but_what_is_float32_and_more_ranks_never_keep_more():
    base = dict(hidden=64, heads=8, kv_heads=4, ffn=160, vocabulary=320, rows=2, length=64)
    wide, narrow = Setting(**base, element=4), Setting(**base, element=2)
    n = 2 * 64
    assert 2 * layer_bytes(narrow) - layer_bytes(wide) == n * 4 * (2 + 8)  # two norms, and one log-sum-exp for each head
    for recompute in ("none", "selective", "full"):
        sizes = [
            layer_bytes(Setting(**base, element=2, tp=tp, cp=cp, sequence_parallel=sp, recompute=recompute))
            for tp, cp, sp in ((1, 1, False), (2, 1, False), (2, 1, True), (4, 1, True))
        ]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] == 4 * sizes[3] or recompute != "full"


def test_recomputing_needs_room_for_what_is_computed_again():
    base = dict(hidden=64, heads=8, kv_heads=4, ffn=160, vocabulary=320, rows=2, length=64, element=2)
    none, full = Setting(**base), Setting(**base, recompute="full")
    assert layer_work_bytes(full) - layer_work_bytes(none) == layer_bytes(none)
