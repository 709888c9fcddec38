"""Judging the reports of all ranks is a pure function: every single change is found, where there is somebody to compare with."""

import copy
import itertools

import pytest
import torch

from mads.topology import AXES, Grid
from mads.train.checksum import PART, checksums, fold
from mads.train.invariants import EQUAL, SHOWN_PROBLEMS, Problem, ReplicaGuard, explain, judge

GRIDS = [s for s in itertools.product(range(1, 5), repeat=4) if s[0] * s[1] * s[2] * s[3] <= 8]


def sound(grid):
    """Reports of a healthy job: a value depends on the axes on which it may."""
    reports = []
    for rank in range(grid.world_size):
        at = grid.coordinates(rank)
        shared = {"embedding.weight": 900 + at["tp"]}
        report = {
            "step": {"": 4},
            "decision": {"": 11},
            "batch": {"": 12},
            "tokens": {"": 100 + at["dp"]},
            "replicated": {f"layers.{at['pp']}.norm": 200 + at["pp"]},
            "everything": {f"layers.{at['pp']}.norm": 200 + at["pp"], f"layers.{at['pp']}.up": 300 + 10 * at["pp"] + at["tp"]},
            "starts": {f"layers.{at['pp']}.up": 400 + at["tp"], "bias": None},
        }
        if grid.pp > 1:
            report["copies" if at["pp"] == grid.pp - 1 else "originals"] = shared if at["pp"] in (0, grid.pp - 1) else {}
        reports.append(report)
    return reports


def check_single_changes(sizes):
    grid = Grid(**dict(zip(AXES, sizes)))
    assert judge(sound(grid), grid) == []
    for rank, (field, (axes, _)) in itertools.product(range(grid.world_size), EQUAL.items()):
        reports = sound(grid)
        keys = list(reports[rank][field])
        for key in keys:
            changed = copy.deepcopy(reports)
            changed[rank][field][key] += 5000
            partners = [
                r
                for r in range(grid.world_size)
                if all(grid.coordinates(r)[a] == grid.coordinates(rank)[a] for a in AXES if a not in axes)
            ]
            found = judge(changed, grid)
            assert len(found) == (len(partners) > 1), (field, rank)
            for problem in found:
                assert problem.field == field and problem.name == key and problem.ranks == set(partners)
                assert [rank] in problem.holders.values()


@pytest.mark.parametrize("sizes", GRIDS, ids=lambda s: "x".join(map(str, s)))
def test_g0_every_single_change_is_found_by_the_ranks_it_concerns(sizes):
    check_single_changes(sizes)


def test_p3_changes_of_either_end_and_a_missing_original_are_found():
    grid = Grid(pp=3, tp=2)
    for rank in (0, 1, 4, 5):
        reports = sound(grid)
        reports[rank]["copies" if rank > 3 else "originals"]["embedding.weight"] ^= 1
        (problem,) = judge(reports, grid)
        assert problem.field == "copies" and problem.name == "embedding.weight" and problem.ranks == {rank % 2, 4 + rank % 2}
    reports = sound(grid)
    del reports[0]["originals"]
    (problem,) = judge(reports, grid)
    assert problem.holders[None] == [0] and "ranks [0 (pp=0 dp=0 cp=0 tp=0)]: nothing" in explain([problem], grid, 4)


def test_r2_equal_shards_are_found_and_constants_are_not():
    grid = Grid(dp=2, tp=4)
    reports = sound(grid)
    reports[6]["starts"]["layers.0.up"] = reports[5]["starts"]["layers.0.up"]
    (problem,) = judge(reports, grid)
    assert (
        problem.field == "starts"
        and problem.ranks == {5, 6}
        and "ranks [5 (pp=0 dp=1 cp=0 tp=1), 6 (" in explain([problem], grid, 1)
    )


def test_a_parameter_that_one_rank_lacks_is_a_difference():
    grid = Grid(dp=2)
    reports = sound(grid)
    del reports[1]["everything"]["layers.0.up"]
    (problem,) = judge(reports, grid)
    assert problem.name == "layers.0.up" and problem.holders[None] == [1]


def test_messages_stay_short_in_large_jobs():
    grid = Grid(dp=1024)
    problems = [Problem("x differs", "everything", f"p{i}", {1: list(range(1023)), 2: [1023]}) for i in range(50)]
    text = explain(problems, grid, 9)
    assert f"and {50 - SHOWN_PROBLEMS} more" in text and "0, 1, 2, 3, 4, 5, 6, 7 and 1015 more" in text
    assert "1023 (pp=0 dp=1023 cp=0 tp=0)" in text and len(text) < 3000


def check_checksums(dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    tensor = torch.randn(57, generator=generator, dtype=torch.float64).to(dtype)
    (before,) = checksums([tensor], tensor.device)
    raw = tensor.view(torch.uint8)
    for byte, bit in itertools.product(range(0, raw.numel(), 5), range(8)):
        raw[byte] ^= 1 << bit
        assert checksums([tensor], tensor.device) != [before]
        raw[byte] ^= 1 << bit
    assert checksums([tensor, tensor[:0]], tensor.device) == [before, 0]
    assert checksums([tensor.flip(0)], tensor.device) != [before]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_checksums_see_every_single_bit_and_swaps(dtype):
    check_checksums(dtype)


def test_checksums_of_parts_equal_python_integers():
    count = PART + 3  # more than one part
    tensor = torch.arange(count, dtype=torch.int32).view(torch.float32)
    parts = [range(PART), range(PART, count)]
    total = 0
    for part in parts:
        n, first = len(part), part[0]
        weighted = sum(range(1, n + 1)) * first + sum(k * (k - 1) for k in range(1, n + 1))
        total = (total * 1_000_003 + weighted) % 2**64
    assert int(fold(tensor, torch.zeros((), dtype=torch.int64))) % 2**64 == total


def test_checks_are_due_at_the_start_of_every_process_and_by_the_interval():
    engine = type("E", (), {"topology": type("T", (), {"size": staticmethod(lambda axis: 1)}), "parameters": []})
    fresh, resumed = ReplicaGuard(engine, 10), ReplicaGuard(engine, 10)
    assert [s for s in range(1, 31) if fresh.due(s)] == [1, 2, 3, 10, 20, 30]
    assert [s for s in range(15, 31) if resumed.due(s)] == [15, 16, 17, 20, 30]
