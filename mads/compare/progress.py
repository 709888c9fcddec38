"""Where a comparison stands, read from its folder, so that it is known whatever launches the cells."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mads.compare.plan import Cell, result_path, work_folder
from mads.logging.progress import count, duration

POLL_S = 1.0
SAY_S = 30.0  # a line at least so often; at once when a cell starts or ends
TAIL_BYTES = 16384


@dataclass(frozen=True)
class Standing:
    """done, failed, running: names of cells; steps: tokens of all cells that were trained on so far"""

    done: tuple[str, ...]
    failed: tuple[str, ...]
    running: tuple[str, ...]
    tokens: int


def error_of(folder: Path, cell: Cell) -> str | None:
    """Why a cell failed, if it did."""
    return _state(folder, cell).get("error")


def _state(folder: Path, cell: Cell) -> dict[str, Any]:
    try:
        return json.loads((work_folder(folder, cell.name) / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def last_step(run: Path) -> int:
    """Step of the last whole line of a run's metrics; 0 if there is none."""
    try:
        with open(run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line).get("step") or json.loads(line).get("steps") or 0)
        except ValueError:  # the first one may be cut
            continue
    return 0


def trained_steps(folder: Path, cell: Cell) -> int:
    """Steps of a cell's trunk and branches so far."""
    work = work_folder(folder, cell.name)
    steps = min(last_step(work / "trunk"), cell.trunk_steps)
    for branch in cell.branches:
        steps += max(0, min(last_step(work / f"branch-{branch.fraction:.2f}"), branch.steps) - branch.start)
    return steps


def standing(folder: Path, cells: Sequence[Cell]) -> Standing:
    """Read from the folder."""
    done, failed, running, tokens = [], [], [], 0
    for cell in cells:
        if result_path(folder, cell.name).is_file():
            done.append(cell.name)
            tokens += cell.all_steps * cell.tokens_per_step
            continue
        state = _state(folder, cell)
        if "error" in state:
            failed.append(cell.name)
        elif "stage" in state:
            running.append(cell.name)
        tokens += trained_steps(folder, cell) * cell.tokens_per_step
    return Standing(tuple(done), tuple(failed), tuple(running), tokens)


def line(now: Standing, first: Standing, seconds: float, cells: Sequence[Cell]) -> str:
    """One line for a terminal."""
    total = sum(cell.all_steps * cell.tokens_per_step for cell in cells)
    speed = (now.tokens - first.tokens) / seconds if seconds > 0 else 0.0
    left = len(cells) - len(now.done) - len(now.failed) - len(now.running)
    rest = duration((total - now.tokens) / speed) if speed > 0 else "?"
    failed = f", {len(now.failed)} failed" if now.failed else ""
    running = f" ({', '.join(now.running)})" if now.running else ""
    return (
        f"{len(now.done)} of {len(cells)} cells done, {len(now.running)} running{running}, {left} left{failed}  "
        f"{count(now.tokens)} of {count(total)} tokens, {count(speed)} tokens/s, time left {rest}"
    )


class Reporter:
    """Says where a comparison stands from a thread of its own, while `with` lasts."""

    def __init__(self, folder: Path, cells: Sequence[Cell], say: Callable[[str], None]):
        self._folder, self._cells, self._say = folder, cells, say
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        first, started = standing(self._folder, self._cells), time.monotonic()
        before, said = first, started
        while not self._stop.wait(POLL_S):
            now, clock = standing(self._folder, self._cells), time.monotonic()
            changed = (now.done, now.failed, now.running) != (before.done, before.failed, before.running)
            if changed or clock - said >= SAY_S:
                self._say(line(now, first, clock - started, self._cells))
                before, said = now, clock
