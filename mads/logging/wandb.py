"""Weights & Biases as a second place for metrics. The package is imported only when it is used."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from mads.console.record import DecisionRecord
from mads.logging.metrics import write_atomically

MODES = ("disabled", "offline", "online")
RUN_ID = "wandb.json"


def stored_run_id(run_dir: str | os.PathLike, run_id: str | None = None) -> str:
    """The W&B id of a run folder, made and stored at the first call so that a restarted run goes on in the same W&B run.

    Raises:
        ValueError: if `run_id` is given and the folder already belongs to another id, or the file is damaged.
    """
    path = Path(run_dir) / RUN_ID
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))["run_id"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no W&B run id ({error!r}); remove it to start another W&B run") from error
        if run_id not in (None, stored):
            raise ValueError(f"{path} belongs to the W&B run {stored!r}, not {run_id!r}; remove the file to start another one")
        return stored
    run_id = run_id or secrets.token_hex(4)
    write_atomically(path, json.dumps({"run_id": run_id}) + "\n")
    return run_id


def flatten(value: dict[str, Any], prefix: str) -> dict[str, float]:
    """The numbers of a line under slash-joined names ({"eval/heldout/news": 2.0}); the rest is left to the files."""
    flat: dict[str, float] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}/{name}")
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            flat[f"{prefix}/{name}"] = item
    return flat


def line_prefix(line: dict[str, Any]) -> str:
    """First part of the names of a metrics line's numbers."""
    return f"phase/{line['name']}" if line["kind"] == "phase" else line["kind"]


def decision_numbers(record: DecisionRecord) -> dict[str, Any]:
    """What charts show of a decision: theta, the agents' rewards, every label's weight and share, seconds."""
    labels = {
        agent: {row.label: {"weight": row.weight, "chosen_share": row.chosen_share} for row in rows}
        for agent, rows in record.labels.items()
    }
    return {
        "round": record.round,
        "theta": record.theta,
        "agent_rewards": record.agent_rewards,
        "labels": labels,
        "seconds": record.seconds,
    }


class WandbSink:
    """Made on rank 0 before training starts, so that a missing key stops the run while it is cheap.

    mode: disabled (nothing happens), offline (files under run_dir/wandb, for `wandb sync`), online
    config: the resolved configuration as plain containers

    Raises:
        ValueError: for another mode.
        RuntimeError: online without a key or without a connection.
    """

    def __init__(self, mode: str, project: str, run_dir: str | os.PathLike, config: dict[str, Any], run_id: str | None = None):
        if mode not in MODES:
            raise ValueError(f"logging.wandb is one of {', '.join(MODES)}, not {mode!r}")
        self.run_id: str | None = None
        self._run = None
        if mode == "disabled":
            return
        self.run_id = stored_run_id(run_dir, run_id)
        self._run = _start(mode, project, Path(run_dir), config, self.run_id)

    def log(self, line: dict[str, Any]) -> None:
        """Send one line of metrics.jsonl; steps become the x axis of every chart."""
        if self._run is None:
            return
        fields = {k: v for k, v in line.items() if k not in ("kind", "step", "name", "nonfinite")}
        self._send({"step": line.get("step", line.get("steps")), **flatten(fields, line_prefix(line))})

    def decision(self, record: DecisionRecord) -> None:
        """Send theta, the agents' rewards and every label's weight and share."""
        if self._run is None:
            return
        self._send({"step": record.step, **flatten(decision_numbers(record), "decision")})

    def _send(self, numbers: dict[str, Any]) -> None:
        """W&B's own process dies of the SIGTERM that a cluster sends to all: the run, which is about to save, must not."""
        try:
            self._run.log(numbers)
        except Exception as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        self._run = None
        print(f"W&B has ended ({error}); the run goes on without it, metrics.jsonl has everything", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Flush and close; further calls are errors of the caller."""
        if self._run is not None:
            try:
                self._run.finish()
                self._run = None
            except Exception as error:
                self._lost(error)


def _start(mode: str, project: str, run_dir: Path, config: dict[str, Any], run_id: str):
    import wandb

    remedy = "run `wandb login`, or set logging.wandb=offline and `wandb sync` the run folder later, or logging.wandb=disabled"
    try:
        # Without prompt=False a missing key asks at the terminal while the other ranks wait.
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise RuntimeError(f"logging.wandb=online needs a W&B API key and found none; {remedy}")
        run = wandb.init(
            mode=mode,
            project=project,
            dir=str(run_dir),
            config=config,
            id=run_id,
            name=run_dir.name,
            resume="allow",
            settings=wandb.Settings(console="off", disable_code=True, disable_git=True, silent=True),
        )
    except wandb.errors.Error as error:
        raise RuntimeError(f"W&B could not start in mode {mode} ({error}); {remedy}") from error
    # A resumed run repeats steps behind W&B's own counter, which would drop them: our step is a metric, the axis of all others.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
