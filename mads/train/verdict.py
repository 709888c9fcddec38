"""What the reports of all ranks say: whether the run hangs, and because of whom. Pure functions of the reports.

A rank that hangs stops all others, in collectives. So the run hangs when *no* rank has made progress for the limit: a rank that
waits for a slow one is not hung, and neither is the slow one. Then the guilty are, in this order,

1. the ranks that do not answer: their process stands still;
2. those whose main thread is not in a collective, where all others wait for them;
3. if all are in collectives, those that have come least far.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mads.train.pulse import Pulse

MOST_NAMED = 8
# Where the main thread is while it waits for other ranks.
WAITING = ("torch/distributed/", "deepspeed/comm/", "mads/collectives.py")


@dataclass
class Report:
    """What a rank has said about itself last.

    idle: seconds without progress, when it was said. waits: a thread is in a collective. place: where the main thread is; ""
    while it makes progress. heard: when the report arrived, by the receiver's clock.
    """

    step: int = 0
    phase: str = "start"
    count: int = 0
    warm: bool = False
    idle: float = 0.0
    waits: bool = False
    place: str = ""
    heard: float = 0.0

    @classmethod
    def of(cls, pulse: Pulse, idle: float, main: int, now: float) -> Report:
        """This rank's own; `main` is the main thread's ident."""
        waits, place = standing(main) if idle > 0 and threading.get_ident() != main else (False, "")
        return cls(pulse.step, pulse.phase, pulse.count, pulse.warm, round(idle, 1), waits, place, now)

    def message(self) -> dict[str, Any]:
        """For the wire."""
        return {name: value for name, value in vars(self).items() if name != "heard"}

    def silent(self, now: float) -> float:
        """Seconds since it arrived."""
        return max(0.0, now - self.heard)

    def stalled(self, now: float) -> float:
        """Seconds without a sign of progress."""
        return self.idle + self.silent(now)

    @property
    def where(self) -> str:
        """For people."""
        return f"after step {self.step}, in phase {self.phase}"


def standing(main: int) -> tuple[bool, str]:
    """(whether a thread of this process is in a collective, where the main thread is): autograd runs DeepSpeed's collectives on
    threads of its own."""
    waits, place = False, ""
    for thread, frame in sys._current_frames().items():
        waits = waits or any(part in Path(frame.f_code.co_filename).as_posix() for part in WAITING)
        if thread == main:
            place = _place(frame)
    return waits, place


def _place(frame) -> str:
    """The innermost function, and the innermost one of mads that called it."""
    places, inner = [_function(frame)], frame
    while inner is not None and "/mads/" not in Path(inner.f_code.co_filename).as_posix():
        inner = inner.f_back
    if inner is not None and inner is not frame:
        places.insert(0, _function(inner))
    return " > ".join(places)


def _function(frame) -> str:
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def hung_for(reports: Mapping[int, Report], now: float) -> float:
    """Seconds in which no rank has made progress."""
    return min(report.stalled(now) for report in reports.values())


def silent_ranks(reports: Mapping[int, Report], now: float, patience: float) -> list[int]:
    """Ranks that have said nothing for `patience` seconds."""
    return [rank for rank, report in reports.items() if report.silent(now) > patience]


def culprits(reports: Mapping[int, Report], now: float, limit: float) -> tuple[str, list[int]]:
    """(kind, ranks) of those for whom a run that hangs waits. kind: silent, busy, or waiting."""
    if silent := silent_ranks(reports, now, limit / 2):
        return "silent", silent
    kind, candidates = "busy", [rank for rank, report in reports.items() if not report.waits]
    if not candidates:
        kind, candidates = "waiting", list(reports)
    behind = min((reports[rank].step, reports[rank].count) for rank in candidates)
    return kind, [rank for rank in candidates if (reports[rank].step, reports[rank].count) == behind]


def sentence(kind: str, guilty: Mapping[int, Report], now: float, reached: int) -> str:
    """For people: the ranks of `culprits`, or with kind "dead" those whose process has ended, with step and phase.

    Args:
        reached: step of a rank that is there. A rank that is not may have taken steps after its last report.
    """
    lines = []
    for rank, report in list(guilty.items())[:MOST_NAMED]:
        since = f"without progress for {report.stalled(now):.1f} s, at {report.place}"
        heard = f"last heard {report.silent(now):.1f} s ago {report.where} (the others have come to step {reached})"
        lines.append(
            {
                "dead": f"rank {rank} died: its process has ended; {heard}",
                "silent": f"rank {rank} does not answer; {heard}",
                "busy": f"rank {rank} hangs {report.where}, {since}",
                "waiting": f"rank {rank} waits in a collective, as all do, and has come least far: {report.where}, {since}",
            }[kind]
        )
    if len(guilty) > MOST_NAMED:
        lines.append(f"and {len(guilty) - MOST_NAMED} ranks more")
    return "; ".join(lines)


def overview(reports: Mapping[int, Report]) -> list[str]:
    """Where every rank stands, ranks at one place on one line."""
    at: dict[str, list[int]] = {}
    for rank, report in reports.items():
        at.setdefault(f"{report.where}{f', at {report.place}' if report.place else ''}", []).append(rank)
    return [f"  {f'rank {r[0]}' if len(r) == 1 else f'ranks {_brief(r)}'}: {where}" for where, r in at.items()]


def _brief(ranks: list[int], most: int = 16) -> str:
    return ", ".join(map(str, ranks[:most])) + (f", ... ({len(ranks)})" if len(ranks) > most else "")
