"""One changed bit in any parameter of any rank is named by the runtime checks, where another rank holds the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from harness import run_ranks

GRIDS = [{"dp": 2}, {"tp": 2}, {"cp": 2}, {"dp": 2, "tp": 2}, {"dp": 2, "cp": 2}, {"cp": 2, "tp": 2}, {"dp": 4}, {"tp": 4}]
BITS = (0, 22, 31)  # lowest of the mantissa, its highest, the sign


def cases() -> list[dict]:
    return [
        {"world": math.prod(grid.values()), "grid": grid, "rank": rank, "bit": bit}
        for grid in GRIDS
        for rank in range(math.prod(grid.values()))
        for bit in BITS
    ]


def group_of(case: dict) -> str:
    return " ".join(f"{axis}{size}" for axis, size in case["grid"].items())


def check_all_parameters(grid: dict, odd: int, bit: int) -> tuple[int, int]:
    """(changes that were named, changes that nobody could compare) on this rank."""
    import guard_cases

    from mads.collectives import ReplicaMismatchError
    from mads.layout import layout_of
    from mads.train.invariants import ReplicaGuard

    engine = guard_cases.decoder_engine(grid)
    topology, ids = engine.topology, np.arange(5)
    guard, batch = ReplicaGuard(engine, 10), guard_cases.step_batch(topology.coordinate("dp"))
    named = alone = 0
    for name, parameter in engine.parameters:
        place = int(torch.randint(parameter.numel(), (1,)))  # the harness seeds alike on all ranks, sizes are alike
        compared = grid.get("dp", 1) * grid.get("cp", 1) > 1 or not layout_of(parameter).sharded
        if topology.rank == odd:
            guard_cases.flip(engine, name, place, bit)
        if compared:
            with pytest.raises(ReplicaMismatchError) as caught:
                guard.check(1, batch, ids)
            assert name in str(caught.value) and f"{odd} (pp=" in str(caught.value), name
            named += 1
        else:
            guard.check(1, batch, ids)
            alone += 1
        if topology.rank == odd:
            guard_cases.flip(engine, name, place, bit)
    guard.check(2, batch, ids)
    return named, alone


def run_case(case: dict) -> dict:
    counts = run_ranks(case["world"], check_all_parameters, case["grid"], case["rank"], case["bit"])
    assert len({tuple(c) for c in counts}) == 1
    named, alone = counts[0]
    return {"changes named": named, "sharded and without a replica": alone}
