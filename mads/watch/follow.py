"""What a run has written so far, kept up to date by reading what is new in its files. Nothing is computed that is not in them."""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mads.console.record import DecisionRecord
from mads.data.schema import DataError
from mads.logging.metrics import DECISIONS, METRICS

RECENT = 20  # train lines that rates are taken from
LARGEST = 1e200


def number(value: Any) -> float | None:
    """A number that can be added up without overflow, or None: a line may hold null for what was not finite, and files may come
    from others."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST
    return float(value) if usable else None


class Tail:
    """New whole lines of a .jsonl file that another process appends to, or replaces (a resumed run cuts its files back)."""

    def __init__(self, path: Path):
        self.path, self.written = path, None
        self._file: tuple[int, int] | None = None
        self._offset = self._line = 0

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """(the file began anew, so that earlier lines do not count; the objects of the lines that are new). `written` is then
        the time of the last change, None without a file.

        Raises:
            DataError: naming file and line: it is no JSON object.
        """
        try:
            with open(self.path, "rb") as file:
                stat = os.fstat(file.fileno())
                anew = (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._offset
                if anew:
                    self._file, self._offset, self._line = (stat.st_dev, stat.st_ino), 0, 0
                file.seek(self._offset)
                raw = file.read()
        except FileNotFoundError:
            anew, self._file, self._offset, self.written = self._file is not None, None, 0, None
            return anew, []
        self.written = stat.st_mtime
        whole = raw[: raw.rfind(b"\n") + 1]  # the rest is still being written
        self._offset += len(whole)
        return anew, [self._object(line) for line in whole.splitlines()]

    def _object(self, line: bytes) -> dict[str, Any]:
        self._line += 1
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path}, line {self._line}: {error}; the file is damaged") from error
        return value


@dataclass
class Metrics:
    """What metrics.jsonl says up to now.

    recent: (step, wall seconds) of the last train lines; wall_seconds: of all of them; seconds: by phase
    """

    train: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    end: dict[str, Any] | None = None
    losses: list[float] = field(default_factory=list)
    recent: deque = field(default_factory=lambda: deque(maxlen=RECENT))
    wall_seconds: float = 0.0
    selection_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    saved_step: float | None = None

    def take(self, line: dict[str, Any]) -> None:
        kind = line.get("kind")
        if kind == "train":
            self.train = line
            self.losses += [loss for loss in [number(line.get("loss"))] if loss is not None]
            self.recent.append((number(line.get("step")) or 0.0, number(line.get("seconds")) or 0.0))
            self.wall_seconds += number(line.get("seconds")) or 0.0
            self.selection_seconds += number(line.get("selection_seconds")) or 0.0
        elif kind == "eval":
            self.evaluation = line
        elif kind == "phase":
            name = str(line.get("name"))
            self.seconds[name] = self.seconds.get(name, 0.0) + (number(line.get("seconds")) or 0.0)
        elif kind == "checkpoint":
            self.saved_step = number(line.get("step"))
        elif kind == "end":
            self.end = line

    @property
    def step(self) -> float:
        return max(number(line.get(key)) or 0.0 for line, key in ((self.train, "step"), (self.end or {}, "steps")))

    @property
    def tokens(self) -> float:
        return max(number(line.get("tokens")) or 0.0 for line in (self.train, self.evaluation, self.end or {}))

    def eta_seconds(self, total_steps: float | None) -> float | None:
        """Wall seconds to the end at the pace of the recent lines, evaluations and selection among them."""
        if total_steps is None or self.end is not None or len(self.recent) < 2:
            return None
        steps = self.recent[-1][0] - self.recent[0][0]
        seconds = sum(seconds for _, seconds in list(self.recent)[1:])
        return max(0.0, total_steps - self.step) * seconds / steps if steps > 0 else None


class Follower:
    """A run folder. `read` brings its fields up to date.

    metrics: what metrics.jsonl says; decision: the last one; theta: agent -> its weight by round; config: that of the run, {} if
    there is none yet

    Raises:
        DataError: it is no folder of a run.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder} is not a folder; give the run_dir of a training run")
        if not any((self.folder / name).is_file() for name in (METRICS, DECISIONS, "config.yaml")):
            raise DataError(f"{folder} holds no {METRICS}, so it is not the folder of a run that has started training")
        self._metrics, self._decisions = Tail(self.folder / METRICS), Tail(self.folder / DECISIONS)
        self.metrics, self.config = Metrics(), {}
        self.decision: DecisionRecord | None = None
        self.theta: dict[str, list[float]] = {}

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def written(self) -> float | None:
        """When metrics or decisions last changed, in seconds since 1970."""
        return max((t for t in (self._metrics.written, self._decisions.written) if t is not None), default=None)

    def setting(self, *keys: str) -> Any:
        """A value of the configuration, None where there is none."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def read(self) -> None:
        """Take what is new.

        Raises:
            DataError: a file is damaged.
        """
        anew, lines = self._metrics.read()
        if anew or not self.config:
            self.config = _config(self.folder / "config.yaml")
        if anew:
            self.metrics = Metrics()
        for line in lines:
            self.metrics.take(line)
        anew, lines = self._decisions.read()
        if anew:
            self.decision, self.theta = None, {}
        for line in lines:
            try:
                self.decision = DecisionRecord.from_json(json.dumps(line))
                if not isinstance(self.decision.notes, list):
                    raise TypeError("notes are no list")
                for agent, theta in self.decision.theta.items():
                    self.theta.setdefault(agent, []).append(number(theta) or 0.0)
            except (TypeError, KeyError, AttributeError) as error:
                raise DataError(f"{self._decisions.path} holds a line that is no decision ({error!r})") from error


def _config(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}
