"""Reading a run folder into what the report draws. Nothing is computed here that is not in the files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mads.console.record import DecisionRecord
from mads.data.schema import DataError
from mads.logging.environment import ENVIRONMENT
from mads.logging.metrics import DECISIONS, METRICS, read_lines

SELECTION_PHASES = ("reference", "probes", "groups", "update", "scoring", "exchange", "decision")
Point = tuple[float, float]


@dataclass
class Run:
    """One run folder. Missing optional files leave their part empty; only metrics.jsonl must be there."""

    name: str
    folder: Path
    config_text: str | None
    config: dict[str, Any]
    environment: dict[str, Any] | None
    train: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None
    decisions: list[DecisionRecord] = field(default_factory=list)

    @property
    def selection(self) -> str | None:
        """How this run chose its data: the config's word, else that of its decisions, else None."""
        named = (self.config.get("selection") or {}).get("name")
        return named or (self.decisions[-1].selection if self.decisions else None)

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        lines = [*self.train[-1:], *self.evals[-1:], *([self.end] if self.end else [])]
        return max((int(line["tokens"]) for line in lines), default=0)

    @property
    def steps(self) -> int:
        return max(
            [*(int(v["step"]) for v in self.train[-1:] + self.evals[-1:]), *([int(self.end["steps"])] if self.end else [])],
            default=0,
        )

    @property
    def wall_seconds(self) -> float:
        """Wall time over all starts of the run: a resumed run's end line knows its last start only."""
        return max(sum(v["seconds"] for v in self.train), (self.end or {}).get("seconds", 0.0))

    def curve(self, kind: str, *keys: str) -> list[Point]:
        """(tokens, value) of the train or eval lines that hold a finite value under the keys."""
        points = []
        for line in {"train": self.train, "eval": self.evals}[kind]:
            value: Any = line
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                points.append((float(line["tokens"]), float(value)))
        return points

    def eval_names(self, key: str) -> list[str]:
        """Domains ("heldout") or tasks ("references") in order of first appearance."""
        return list(dict.fromkeys(name for line in self.evals for name in line.get(key) or {}))

    def phase_seconds(self) -> dict[str, float]:
        """Seconds by phase, over the run. Selection phases that metrics lack come from the decisions."""
        total: dict[str, float] = {}
        for line in self.phases:
            total[line["name"]] = total.get(line["name"], 0.0) + line["seconds"]
        for name in {n for d in self.decisions for n in d.seconds} - set(total):
            total[name] = sum(d.seconds.get(name, 0.0) for d in self.decisions)
        return total


def read_run(folder: str | Path) -> Run:
    """Read a run folder.

    Raises:
        DataError: if the folder or its metrics.jsonl is missing or empty, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the run_dir of a training run")
    if not (folder / METRICS).is_file():
        raise DataError(f"{folder} holds no {METRICS}, so it is not the folder of a run that has started training")
    try:
        lines = read_lines(folder / METRICS)
        decisions = [DecisionRecord.from_json(json.dumps(v)) for v in _optional_lines(folder / DECISIONS)]
        environment = json.loads(_text(folder / ENVIRONMENT) or "null")
        config_text = _text(folder / "config.yaml")
        config = OmegaConf.to_container(OmegaConf.create(config_text)) if config_text else {}
    except (ValueError, TypeError, KeyError, OmegaConfBaseException, yaml.YAMLError) as error:
        raise DataError(f"{folder} cannot be read as a run folder: {error}") from error
    if not lines:
        raise DataError(
            f"{folder / METRICS} is empty: the run stopped before its first log interval; train longer or lower "
            "train.log_interval"
        )
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_kind.setdefault(line.get("kind", "?"), []).append(line)
    name = folder.resolve().name
    return Run(
        name,
        folder,
        config_text,
        config if isinstance(config, dict) else {},
        environment,
        by_kind.get("train", []),
        by_kind.get("eval", []),
        by_kind.get("phase", []),
        (by_kind.get("end") or [None])[-1],
        decisions,
    )


def read_runs(folders: list[str | Path]) -> list[Run]:
    """Read runs and give each a name of its own: the folder's, with its parent's where two are alike.

    Raises:
        DataError: if one folder is given twice, or cannot be read.
    """
    paths = [Path(f).resolve() for f in folders]
    if len(set(paths)) < len(paths):
        raise DataError(f"the same run folder is given twice: {', '.join(str(f) for f in folders)}")
    runs = [read_run(f) for f in folders]
    names = [run.name for run in runs]
    for run, path in zip(runs, paths):
        if names.count(run.name) > 1:
            run.name = f"{path.parent.name}/{path.name}"
    if len({run.name for run in runs}) < len(runs):
        for run, path in zip(runs, paths):
            run.name = str(path)
    return runs


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _optional_lines(path: Path) -> list[dict[str, Any]]:
    return read_lines(path) if path.is_file() else []
