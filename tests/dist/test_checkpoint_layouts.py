"""Checkpoints between layouts: tensor and data parallelism, ZeRO stages, padded vocabularies (K1, K2). The whole matrix is in
tests/full/checkpoint_matrix.py."""

import math
import tempfile

import pytest
import torch.distributed as dist
from checkpoint_support import check_source, check_sources, check_target, check_targets
from harness import run_ranks


def layout(zero, tied=True, **grid):
    return {"grid": grid, "zero": zero, "tied": tied}


SOURCES = {
    "tensor 2": layout(1, tp=2),
    "tensor 4": layout(0, tp=4),
    "data 4": layout(2, dp=4),
    "both": layout(3, tp=2, dp=2),
    "data 2": layout(3, dp=2),
    "alone": layout(0),
    "stages": layout(1, pp=2, tp=2),
    "four stages": layout(0, pp=4),
    "context": layout(3, cp=2, dp=2),
    "untied": layout(1, False, tp=2),
    "untied 4": layout(3, False, tp=4),
}
# Every stage and every grid is a source and a target; each two tensor-parallel sizes are a pair in both directions.
PAIRS = [
    ("tensor 2", layout(3, dp=2)),
    ("stages", layout(3, dp=2)),  # into the same engine, which has trained since
    ("tensor 2", layout(0, tp=4)),
    ("tensor 2", layout(2, dp=4)),
    ("tensor 2", layout(1, tp=2)),
    ("tensor 4", layout(2, tp=2)),
    ("tensor 4", layout(1)),
    ("data 4", layout(3, tp=2, dp=2)),
    ("both", layout(0, dp=2)),
    ("both", layout(3, tp=4)),
    ("both", layout(3, tp=2, dp=2)),
    ("data 2", layout(1, tp=2)),
    ("alone", layout(1, tp=4)),
    ("stages", layout(0, pp=4)),
    ("stages", layout(3, tp=2)),
    ("four stages", layout(1, pp=2, cp=2)),
    ("four stages", layout(2)),
    ("context", layout(1, pp=2)),
    ("tensor 4", layout(2, cp=2, tp=2)),
    ("untied", layout(1, False, pp=2)),
    ("untied", layout(3, False, dp=2)),
    ("untied", layout(2, False, tp=4)),
    ("untied 4", layout(0, False, tp=2)),
]


def world(layout):
    return math.prod(layout["grid"].values())


QUICK = [PAIRS[i] for i in (0, 1, 2, 9, 11, 13, 17, 19)]


@pytest.mark.parametrize("pairs", [QUICK, pytest.param(PAIRS, marks=pytest.mark.full)], ids=["some", "more"])
def test_k1_k2_saved_on_one_layout_and_loaded_on_another(tmp_path, pairs):
    sources = {name: SOURCES[name] for name, _ in pairs}
    for ranks in (1, 2, 4):
        run_ranks(ranks, check_sources, [(str(tmp_path / n), s) for n, s in sources.items() if world(s) == ranks], timeout=120)
    for ranks in (1, 2, 4):
        run_ranks(ranks, check_targets, [(str(tmp_path / n), t) for n, t in pairs if world(t) == ranks], timeout=240)


def check_pairs():
    """On two ranks: tensor-parallel shards saved and loaded, also by ranks that hold everything."""
    with tempfile.TemporaryDirectory() as mine:
        told = [mine]
        dist.broadcast_object_list(told)
        check_source(told[0], layout(1, tp=2))
        check_target(told[0], layout(1, dp=2))
        check_target(told[0], layout(0, tp=2))
        dist.barrier()
