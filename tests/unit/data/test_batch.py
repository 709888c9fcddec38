"""A packed batch is one block of memory, moved by one copy."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_loader import GLOBAL, SEQ, check_same, own_pool, rest_of

from mads.data.batch import IGNORE, PackedBatch, make_batch
from mads.data.loader import Loader

FIELDS = ("tokens", "labels", "positions", "segments")


def check_block():
    rng = np.random.default_rng(0)
    batch = make_batch([[rng.integers(1, 50, 5), rng.integers(1, 50, 3)], [rng.integers(1, 50, 7)]], 9)
    assert batch.block.shape == (4, 2, 9) and batch.block.dtype == torch.int64
    for row, name in enumerate(FIELDS):
        assert torch.equal(batch.block[row], getattr(batch, name))
        assert getattr(batch, name).untyped_storage().data_ptr() == batch.block.untyped_storage().data_ptr()
    other = replace(batch, labels=torch.full_like(batch.labels, IGNORE))  # as rewards do
    assert torch.equal(other.block[1], other.labels) and torch.equal(other.block[0], batch.tokens)
    assert torch.equal(PackedBatch.of_block(batch.block, batch.samples).labels, batch.labels)


def test_a_batch_is_one_block_and_one_that_was_made_from_it_another():
    check_block()


def test_a_batch_that_is_there_already_is_not_copied():
    batch = make_batch([[np.arange(4)]], 6)
    assert batch.to("cpu") is batch and batch.to(torch.device("cpu", 0)).tokens.device.type == "cpu"
    moved = batch.to("meta")
    assert moved.samples == 1 and moved.tokens.shape == batch.tokens.shape
    there = [moved.tokens, moved.labels, moved.positions]
    assert all(t.device.type == "meta" for t in there)
    assert len({t.untyped_storage()._cdata for t in there}) == 1  # one copy


@pytest.mark.parametrize("prefetch, workers", [(0, 0), (2, 0), (2, 1)])
def test_every_batch_is_finished_once_by_the_thread_that_made_it(tmp_path, prefetch, workers):
    pool, ids = own_pool(tmp_path)
    seen = []

    def finish(batch):
        seen.append((id(batch), threading.current_thread().name))
        return PackedBatch.of_block(batch.block.clone(), batch.samples)

    with Loader(pool, SEQ, GLOBAL, 2, 0, 1, prefetch, workers) as plain:
        plain.begin_round(0, ids)
        expected = rest_of(plain)
    with Loader(pool, SEQ, GLOBAL, 2, 0, 1, prefetch, workers, finish) as loader:
        loader.begin_round(0, ids)
        check_same(rest_of(loader), expected)
    assert len(seen) == sum(len(step.micro_batches) for step in expected)
    assert all(name.startswith("mads-loader") == (prefetch > 0) for _, name in seen)
