"""Every layout to every layout (K1): what the full runner calls. A case is a pair of layouts of at most four ranks."""

from __future__ import annotations

import functools
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from checkpoint_support import check_source, check_target
from harness import run_ranks

LARGEST_WORLD = 4
AXES = ("pp", "tp", "cp", "dp")
STAGES = (0, 1, 2, 3)


def supported(grid: dict[str, int], zero: int, tied: bool) -> bool:
    """Whether the engine trains this layout."""
    return grid["pp"] == 1 and grid["cp"] == 1


def layouts() -> list[dict[str, Any]]:
    """All supported layouts, those of one world size together."""
    sizes = [n for n in range(1, LARGEST_WORLD + 1) if LARGEST_WORLD % n == 0]
    grids = [dict(zip(AXES, (p, t, c, d))) for p in sizes for t in sizes for c in sizes for d in sizes]
    grids = sorted((g for g in grids if math.prod(g.values()) <= LARGEST_WORLD), key=lambda g: math.prod(g.values()))
    return [
        {"grid": grid, "zero": zero, "tied": tied}
        for tied in (True, False)
        for grid in grids
        for zero in STAGES
        if supported(grid, zero, tied)
    ]


def cases() -> list[dict[str, Any]]:
    """Every source with every target, of tied and of untied embeddings."""
    every = layouts()
    return [{"source": s, "target": t} for s in every for t in every if s["tied"] == t["tied"]]


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
    run_ranks(math.prod(target["grid"].values()), check_target, root, target)


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="checkpoint-matrix-"))


@functools.cache
def _saved(grid: tuple[tuple[str, int], ...], zero: int, tied: bool) -> str:
    layout = {"grid": dict(grid), "zero": zero, "tied": tied}
    root = str(_folder() / "-".join([*(f"{axis}{size}" for axis, size in grid), f"zero{zero}", "tied" if tied else "untied"]))
    try:
        run_ranks(math.prod(layout["grid"].values()), check_source, root, layout)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return root


def clean() -> None:
    """Remove the saved sources."""
    shutil.rmtree(_folder(), ignore_errors=True)
    _saved.cache_clear()
    _folder.cache_clear()
