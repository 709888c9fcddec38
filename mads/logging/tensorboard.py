"""TensorBoard event files beside the run folder's own, by the package tensorboardX. It is imported only when it is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mads.console.record import DecisionRecord
from mads.logging.wandb import decision_numbers, flatten, line_prefix

FOLDER = "tensorboard"


class TensorboardSink:
    """The same numbers under the same names as W&B gets, by step. Made on rank 0.

    enabled: False: nothing happens.
    resume_step: events of later steps, which the resumed run writes again, are hidden by TensorBoard.

    Raises:
        RuntimeError: if the package is not installed.
    """

    def __init__(self, enabled: bool, run_dir: str | os.PathLike, resume_step: int | None = None):
        self._writer = None
        if not enabled:
            return
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise RuntimeError(
                "logging.tensorboard=true needs the package tensorboardX: pip install 'mads[tensorboard]', or "
                "logging.tensorboard=false"
            ) from error
        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(os.fspath(Path(run_dir) / FOLDER), purge_step=purge)

    def log(self, line: dict[str, Any]) -> None:
        """Write one line of metrics.jsonl."""
        self._write(flatten(line, line_prefix(line)), line.get("step", line.get("steps")))

    def decision(self, record: DecisionRecord) -> None:
        """Write theta, the agents' rewards and every label's weight and share."""
        self._write(flatten(decision_numbers(record), "decision"), record.step)

    def _write(self, numbers: dict[str, float], step: int) -> None:
        if self._writer is None:
            return
        for name, value in numbers.items():
            if not name.endswith(("/step", "/steps")):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
