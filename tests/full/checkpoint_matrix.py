"""Suite: checkpoints saved at every layout of 1, 2 and 4 ranks load at every other, bit for bit, and training goes on."""

from __future__ import annotations

import functools
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import layout_cases
from checkpoint_support import check_source, check_target
from harness import run_ranks


def all_layouts() -> list[dict[str, Any]]:
    """Every grid with every stage that it allows, with tied and with untied embeddings."""
    return [
        {"grid": dict(zip(layout_cases.AXES, grid)), "zero": zero, "tied": tied}
        for tied in (True, False)
        for grid in layout_cases.grids(1, 2, 4)
        for zero in layout_cases.FACTORS["zero"]
        if layout_cases.valid({"grid": grid, "zero": zero})
    ]


def cases() -> list[dict[str, Any]]:
    """Every source with every target. A target's cases are together: its engine is used again."""
    every = all_layouts()
    pairs = [(s, t) for t in every for s in every if s["tied"] == t["tied"]]
    return [{"world": max(world_of(s), world_of(t)), "source": s, "target": t} for s, t in pairs]


def world_of(layout: dict[str, Any]) -> int:
    return math.prod(layout["grid"].values())


def name_of(case: dict[str, Any]) -> str:
    """For example "tp2 zero1 -> dp4 zero3 untied"."""

    def words(layout):
        cut = " ".join(f"{axis}{size}" for axis, size in layout["grid"].items() if size > 1) or "alone"
        return f"{cut} zero{layout['zero']}"

    return f"{words(case['source'])} -> {words(case['target'])}" + ("" if case["source"]["tied"] else " untied")


def run_case(case: dict[str, Any]) -> None:
    """Save at the source (once for all of its targets in this process), load at the target.

    Raises:
        AssertionError: naming the tensor or the loss that differs.
    """
    source, target = case["source"], case["target"]
    root = _saved(tuple(source["grid"].items()), source["zero"], source["tied"])
    run_ranks(world_of(target), check_target, root, target)


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="checkpoint-matrix-"))


@functools.cache
def _saved(grid: tuple[tuple[str, int], ...], zero: int, tied: bool) -> str:
    layout = {"grid": dict(grid), "zero": zero, "tied": tied}
    root = str(_folder() / "-".join([*(f"{axis}{size}" for axis, size in grid), f"zero{zero}", "tied" if tied else "untied"]))
    try:
        run_ranks(world_of(layout), check_source, root, layout)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return root


def clean() -> None:
    """Remove the saved sources."""
    shutil.rmtree(_folder(), ignore_errors=True)
    _saved.cache_clear()
    _folder.cache_clear()
