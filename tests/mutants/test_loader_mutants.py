"""Mutants of the token files, the packing and the loader (D4, D6). See mutants.py for the scheme."""

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import outcome

LOADER, WORKERS, PACKING = "unit/data/test_loader.py", "unit/data/test_loader_workers.py", "unit/data/test_packing.py"
MEGATRON = "unit/data/test_megatron.py"
INDEXED = "unit/data/test_indexed_megatron.py"


def _pointers_summed_in_32_bits(original):
    def write_index(path, dtype, lengths, starts, documents):
        starts = np.cumsum([0, *lengths[:-1]]).astype(np.int32).astype(np.int64)
        return original(path, dtype, lengths, starts, documents)

    return write_index


def _read_at_32_bits(original):
    def tokens_of(self, row):
        start = int(self.pointers[row].astype(np.int32)) // self.dtype.itemsize
        return self.tokens[start : start + int(self.lengths[row])]

    return tokens_of


def _pairs_swapped(original):
    def work(self):
        items = list(original(self))
        for i in range(0, len(items) - 1, 2):
            items[i : i + 2] = items[i + 1], items[i]
        return iter(items)

    return work


def _handed_out_while_it_may_grow(original):
    def place(self):
        original(self)
        self._ready = self._rows

    return place


def _the_step_read_ahead_is_trained_on(original):
    def next_batch(self):
        self._plan(self.position + 1)
        self._plans[self.position] = self._plans[self.position + 1] or self._plans[self.position]
        return original(self)

    return next_batch


def _windows_a_token_late(original):
    def add(self, document, lengths):
        original(self, document, lengths)
        self._starts[-1][1:] += 1

    return add


MUTANTS = [
    Mutant(
        "sequence pointers are written from 32-bit sums",
        "mads.data.indexed:write_index",
        _pointers_summed_in_32_bits,
        f"{INDEXED}:check_pointers_beyond_2_to_the_31",
    ),
    Mutant(
        "sequence pointers are read as 32 bits",
        "mads.data.indexed:IndexedReader.__getitem__",
        _read_at_32_bits,
        f"{INDEXED}:check_pointers_beyond_2_to_the_31",
    ),
    Mutant(
        "a row is handed out while it may still grow",
        "mads.data.packing:Packer._place",
        _handed_out_while_it_may_grow,
        f"{PACKING}:check_packing",
        args=(16, 1, 16, 3, 9, 5),
        red=("AssertionError", "ValueError"),  # its next sample has a row that is gone
    ),
    Mutant(
        "batches of two workers change places",
        "mads.data.workers:_Queue.__iter__",
        _pairs_swapped,
        f"{WORKERS}:check_alone",
        args=("check_workers",),
    ),
    Mutant(
        "the step that is read ahead is trained on",
        "mads.data.loader:Loader.next",
        _the_step_read_ahead_is_trained_on,
        f"{LOADER}:check_alone",
        args=("check_read_ahead",),
    ),
    Mutant(
        "windows of a token file begin a token late",
        "mads.data.megatron:WindowWriter.add",
        _windows_a_token_late,
        f"{MEGATRON}:check_alone",
        args=("check_equal_to_the_texts",),
        red=("AssertionError", "DataError"),
    ),
    Mutant(
        "a pool of other shards resumes",
        "mads.data.schema:Manifest.shards_fingerprint",
        lambda original: lambda self, part, count=None: "the same",
        f"{LOADER}:check_alone",
        args=("check_other_shards",),
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    red = outcome(mutant)
    assert red is not None, f"{mutant.check} stayed green although {mutant.name}"
    assert any(kind in red.split(":")[0].split() for kind in mutant.red), red
