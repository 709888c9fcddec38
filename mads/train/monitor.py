"""heartbeat.json in the run folder: what every rank is at, for people and programs that look from outside."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mads.logging.metrics import write_atomically
from mads.train.verdict import Report

HEARTBEAT = "heartbeat.json"
EVERY_S = 2.0  # at most so often
CLOSE_S = 2.0  # for the last version


class Monitor:
    """Writes from a thread of its own: a file system that hangs must not hold up the watchdog. A version that comes while the one
    before is being written takes the place of others that wait."""

    def __init__(self, run_dir: Path, limit_s: float):
        self._path, self._limit = Path(run_dir) / HEARTBEAT, limit_s
        self._waiting: dict[str, Any] | None = None
        self._last = -EVERY_S
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="heartbeat file", daemon=True)
        self._thread.start()

    def show(
        self, reports: Mapping[int, Report], left: Mapping[int, Mapping[str, Any]], now: float, ended: str | None = None
    ) -> None:
        """Take these reports, unless it is too soon.

        Args:
            left: rank -> how it has left, of those that have.
            now: by the clock of the reports.
            ended: how the run has ended: the last version. Waits for it, for a while.
        """
        if now - self._last < EVERY_S and ended is None:
            return
        self._last = now
        ranks = [
            {
                "rank": rank,
                "step": report.step,
                "phase": report.phase,
                "seconds_without_progress": round(report.stalled(now), 1),
                "seconds_silent": round(report.silent(now), 1),
                "at": report.place,
                **({"left_with": left[rank]["code"]} if rank in left else {}),
            }
            for rank, report in sorted(reports.items())
        ]
        with self._changed:
            self._waiting = {"time": round(time.time(), 1), "hang_timeout_s": self._limit, "ended": ended, "ranks": ranks}
            self._changed.notify()
        if ended is not None:
            self._thread.join(CLOSE_S)

    def _write(self) -> None:
        content: dict[str, Any] = {"ended": None}
        while content["ended"] is None:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None)
                content, self._waiting = self._waiting, None
            try:
                if self._path.parent.is_dir():  # not before the run has made it
                    write_atomically(self._path, json.dumps(content, indent=1) + "\n")
            except OSError:  # of a full disk the training itself will tell
                pass
