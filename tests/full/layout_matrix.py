"""Suite: training and rewards at every layout of 1, 2 and 4 ranks, and at some of 8, equal one process."""

from __future__ import annotations

import math

import layout_cases
import layouts
from harness import run_ranks

EIGHT = [
    ({"pp": 2, "dp": 2, "tp": 2}, 1, ["parallel.sequence_parallel=true", "model.tie_embeddings=true"]),
    ({"pp": 2, "cp": 2, "tp": 2}, 0, ["parallel.sequence_parallel=true", "model.tie_embeddings=false"]),
    ({"dp": 2, "cp": 2, "tp": 2}, 3, ["parallel.activation_checkpointing=full"]),
    ({"dp": 2, "cp": 2, "tp": 2}, 2, ["parallel.sequence_parallel=true"]),
    ({"dp": 4, "tp": 2}, 3, []),
]


def cases() -> list[dict]:
    """One case for each layout."""
    listed = []
    for case in layout_cases.every():
        grid, zero, more = layout_cases.overrides(case)
        listed.append({"world": math.prod(case["grid"]), "grid": grid, "zero": zero, "overrides": more})
    return listed + [{"world": 8, "grid": grid, "zero": zero, "overrides": more} for grid, zero, more in EIGHT]


def group_of(case: dict) -> str:
    """Row of the page's table."""
    return f"{case['world']} ranks, ZeRO {case['zero']}"


def run_case(case: dict) -> dict:
    """The largest deviations of a layout."""
    arguments = case["grid"], case["zero"], case["overrides"]
    return run_ranks(case["world"], layouts.check_layout, *arguments, timeout=600 if case["world"] == 8 else 240)[0]
