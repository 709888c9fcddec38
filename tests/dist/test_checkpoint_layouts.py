"""Checkpoints between layouts: tensor and data parallelism, ZeRO stages, padded vocabularies (K1, K2). The whole matrix is in
tests/full/checkpoint_matrix.py."""

import itertools
import math

from checkpoint_support import check_sources, check_targets
from harness import run_ranks


def layout(zero, tied=True, **grid):
    return {"grid": grid, "zero": zero, "tied": tied}


# Every stage and every grid is once a source and a target, each pair of tensor-parallel sizes is there in both directions.
SOURCES = [layout(1, tp=2), layout(0, tp=4), layout(2, dp=4), layout(3, tp=2, dp=2), layout(3, dp=2), layout(0)]
TARGETS = [layout(3, dp=2), layout(1, tp=4), layout(3, tp=2), layout(2, dp=4), layout(0, tp=2, dp=2), layout(1)]
UNTIED = [layout(1, False, tp=2), layout(3, False, tp=4), layout(2, False, dp=2)]


def world(layout):
    return math.prod(layout["grid"].values())


def test_k1_k2_saved_on_one_layout_and_loaded_on_another(tmp_path):
    sources = [(str(tmp_path / str(i)), source) for i, source in enumerate(SOURCES + UNTIED)]
    for ranks in (1, 2, 4):
        run_ranks(ranks, check_sources, [(root, s) for root, s in sources if world(s) == ranks], timeout=120)
    pairs = [(s, t) for s, t in itertools.product(sources[: len(SOURCES)], TARGETS)]
    pairs = [(s, t) for i, (s, t) in enumerate(pairs) if i % 3 != 1 or s[1] == t]  # two thirds of them
    pairs += list(itertools.product(sources[len(SOURCES) :], UNTIED))
    for ranks in (1, 2, 4):
        run_ranks(ranks, check_targets, [(root, t) for (root, _), t in pairs if world(t) == ranks], timeout=240)
