"""Cutting a logical tensor over tensor-parallel ranks and putting it together again (T5, T8, G3)."""

import pytest
import torch

from mads.layout import REPLICATED, Layout, counts_on, is_copy, layout_of, mark, named_logical_parameters, shard, unshard


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(
    "shape, layout",
    [
        ((8, 3), Layout(axis=0)),
        ((3, 8), Layout(axis=1)),
        ((16, 3), Layout(axis=0, parts=(8, 4, 4))),  # Q, K, V
        ((3, 24), Layout(axis=1, parts=(12, 12))),  # gate, up
        ((12,), Layout(axis=0, parts=(4, 8))),
        ((8, 3), Layout(axis=0, padded_from=7)),
        ((5, 3), REPLICATED),
    ],
)
def test_t5_unshard_inverts_shard_and_each_part_is_cut_by_itself(shape, layout, count):
    full = torch.randn(shape, dtype=torch.float64)
    kept = full.clone()
    shards = [shard(full, layout, index, count) for index in range(count)]
    assert torch.equal(unshard(shards, layout), full) and torch.equal(full, kept)
    for index, piece in enumerate(shards):
        assert piece.is_contiguous() and piece.data_ptr() != full.data_ptr()
        if not layout.sharded:
            assert torch.equal(piece, full)
            continue
        wanted = []  # by hand: rows index * n / count ... of every part of n rows
        start = 0
        for size in layout.parts or (shape[layout.axis],):
            step = size // count
            wanted += range(start + index * step, start + (index + 1) * step)
            start += size
        assert torch.equal(piece, full.index_select(layout.axis, torch.tensor(wanted)))


def test_t8_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="part of size 6 cannot be cut into 4"):
        shard(torch.zeros(14, 2), Layout(axis=0, parts=(8, 6)), 0, 4)
    with pytest.raises(ValueError, match=r"parts \(8, 4\) sum to 12, but axis 0 has size 14"):
        shard(torch.zeros(14, 2), Layout(axis=0, parts=(8, 4)), 0, 2)


def test_g3_marks_are_what_deepspeed_reads_and_an_unmarked_parameter_is_an_error():
    sharded, whole = torch.nn.Parameter(torch.zeros(4, 2)), torch.nn.Parameter(torch.zeros(4))
    assert mark(sharded, Layout(axis=0), "a.weight") is sharded and sharded.tensor_model_parallel is True
    assert mark(whole, REPLICATED, "b.weight").tensor_model_parallel is False
    assert layout_of(sharded) == Layout(axis=0) and layout_of(whole) == REPLICATED
    with pytest.raises(LookupError, match=r"shape \(7, 2\) has no layout"):
        layout_of(torch.nn.Parameter(torch.zeros(7, 2)))


def test_a_tied_weight_appears_once_and_names_do_not_depend_on_the_module():
    module = torch.nn.ModuleDict({"7": torch.nn.Linear(3, 5, bias=False), "0": torch.nn.Embedding(5, 3)})
    module["7"].weight = module["0"].weight
    module["norm"] = torch.nn.LayerNorm(3)
    with pytest.raises(LookupError, match="has no layout"):
        named_logical_parameters(module)
    mark(module["7"].weight, Layout(axis=0), "embedding.weight")
    mark(module["norm"].weight, REPLICATED, "norm.weight")
    mark(module["norm"].bias, REPLICATED, "norm.bias")
    assert [n for n, _ in named_logical_parameters(module)] == ["embedding.weight", "norm.bias", "norm.weight"]


def test_g1_shards_count_everywhere_replicas_once_and_copies_never():
    sharded, whole, copy = (torch.nn.Parameter(torch.zeros(4)) for _ in range(3))
    mark(sharded, Layout(axis=0), "a")
    mark(whole, REPLICATED, "b")
    mark(copy, Layout(axis=0), "a", copy=True)
    assert [[counts_on(p, rank) for rank in (0, 1)] for p in (sharded, whole, copy)] == [[True, True], [True, False], [False] * 2]
    assert copy.ds_pipe_replicated and not sharded.ds_pipe_replicated and is_copy(copy)
