"""Mutants of attention in tiles and of the elementwise kernels. See mutants.py for the scheme."""

from dataclasses import replace

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

TILES, ELEMENTWISE = "unit/kernels/test_attention_tiles.py", "unit/kernels/test_elementwise.py"
SHORT, MIXED = ("many short",), ("long, short and padding",)


def _bias_of_one_document(original):
    return lambda tiles, ids, causal, dtype: original(tiles, np.zeros_like(ids), causal, dtype)


def _without_the_last_document(original):
    def by_document(rows, starts, ends, size):
        return original(rows, starts[:-1], ends[:-1], size)

    return by_document


def _upper_left_corner(original):
    def causal(tiles):
        return np.tri(tiles.queries, tiles.keys, dtype=bool)[None]

    return causal


def _keys_of_the_first_row(original):
    def by_row(rows, starts, ends, size):
        plan = original(rows, starts, ends, size)
        alone = original(rows[:1], *_of_the_first(rows, starts, ends), size)
        return replace(plan, tiles=tuple(replace(t, keys=first.keys) for t, first in zip(plan.tiles, alone.tiles)))

    return by_row


def _of_the_first(rows, starts, ends):
    here = starts < rows.shape[1]
    return starts[here], ends[here]


def _half_of_the_values_gradient(original):
    def backward(*arguments, **names):
        dq, dk, dv = original(*arguments, **names)
        return dq, dk, dv * 0.5

    return backward


def _mean_for_norm(original):
    return lambda x, weight, eps: original(x - 0.1 * x.mean(-1, keepdim=True), weight, eps)


def _not_back(original):
    return lambda x, cos, sin, out, sign: original(x, cos, sin, out, 1)


MUTANTS = [
    Mutant(
        "tiles: attention crosses documents",
        "mads.kernels.attention_tiles:_with_bias",
        _bias_of_one_document,
        f"{TILES}:check_tiles",
        args=SHORT,
    ),
    Mutant(
        "tiles: the last document is left out",
        "test_attention_tiles:by_document",
        _without_the_last_document,
        f"{TILES}:check_every_plan_covers_the_documents_once",
    ),
    Mutant(
        "tiles: documents behind padding belong to the run before it",
        "mads.kernels.attention_tiles:_runs",
        lambda original: lambda documents, size: original(_closed_up(list(documents)), size),
        f"{TILES}:check_every_plan_covers_the_documents_once",
    ),
    Mutant(
        "tiles: causal towards the upper left corner",
        "mads.kernels.attention_tiles:_causal",
        _upper_left_corner,
        f"{TILES}:check_tiles",
        args=MIXED,
    ),
    Mutant(
        "tiles: all rows have the keys of the first",
        "test_attention_tiles:by_row",
        _keys_of_the_first_row,
        f"{TILES}:check_tiles",
        args=SHORT,
    ),
    Mutant(
        "tiles: a wrong gradient of the values",
        "mads.kernels.attention_tiles:_backward",
        _half_of_the_values_gradient,
        f"{TILES}:check_tiles",
        args=SHORT,
    ),
    Mutant(
        "tiles: positions in no tile hold what memory held",
        "mads.kernels.attention_tiles:Plan.__init__",
        lambda original: lambda self, tiles, gaps: original(self, tiles, False),
        f"{TILES}:check_every_plan_covers_the_documents_once",
    ),
    Mutant(
        "elementwise: RMSNorm takes the mean off",
        "test_elementwise:rms_norm",
        _mean_for_norm,
        f"{ELEMENTWISE}:check_rms_norm",
    ),
    Mutant(
        "elementwise: RoPE's gradient is turned on instead of back",
        "mads.model.rope:_rotate",
        _not_back,
        f"{ELEMENTWISE}:check_split_and_turn",
    ),
]


def _closed_up(documents):
    """The documents as if no padding were between them."""
    moved, at = [], 0
    for start, end in documents:
        moved.append((at, at + end - start))
        at += end - start
    return moved


def run_mutated(name):
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_attention_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_check_is_green_without_it(mutant):
    assert mutant.check_function()(*mutant.args) is None
