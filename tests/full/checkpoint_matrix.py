"""Suite: checkpoints saved at every grid of 1, 2 and 4 ranks load at every other, bit for bit, and training goes on."""

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


def _stages(grid: tuple[int, ...]) -> list[int]:
    return [zero for zero in layout_cases.FACTORS["zero"] if layout_cases.valid({"grid": grid, "zero": zero})]


def _layout(grid: tuple[int, ...], zero: int, tied: bool) -> dict[str, Any]:
    return {"grid": dict(zip(layout_cases.AXES, grid)), "zero": zero, "tied": tied}


def cases() -> list[dict[str, Any]]:
    """Every grid of 1, 2 and 4 ranks with every other, tied and untied, the stages of both taking turns; and on two ranks every
    axis and stage with every other. A target's cases are together: its engine is used again."""
    pairs: dict[str, dict[str, Any]] = {}

    def add(source, target):
        case = {"world": max(world_of(source), world_of(target)), "source": source, "target": target}
        pairs.setdefault(name_of(case), case)

    grids = layout_cases.grids(1, 2, 4)
    for tied in (True, False):
        for j, to in enumerate(grids):
            for turn, zero in enumerate(_stages(to)):
                for i, start in enumerate(grids):
                    if i % len(_stages(to)) == turn:
                        stages = _stages(start)
                        add(_layout(start, stages[(i + j) % len(stages)], tied), _layout(to, zero, tied))
    small = [_layout(grid, zero, True) for grid in layout_cases.grids(2) for zero in _stages(grid)]
    for target in small:
        for source in small:
            add(source, target)
    return list(pairs.values())


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
