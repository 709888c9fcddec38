"""Groups of every grid of up to eight ranks, on real ranks."""

from __future__ import annotations

import itertools
import math

from harness import run_ranks
from test_topology_groups import check_new_topology

from mads.topology import AXES


def cases() -> list[dict]:
    """One case a grid, those of one world size together."""
    grids = [s for s in itertools.product(range(1, 9), repeat=4) if math.prod(s) <= 8]
    return [{"world": math.prod(s), "grid": dict(zip(AXES, s))} for s in sorted(grids, key=lambda s: (math.prod(s), s))]


def name_of(case: dict) -> str:
    return " ".join(f"{axis}{size}" for axis, size in case["grid"].items())


def run_case(case: dict) -> None:
    run_ranks(case["world"], check_new_topology, case["grid"], timeout=120)
