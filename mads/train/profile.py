"""The PyTorch profiler over some steps of a run, by `logging.profile`: what a rank did, operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

FOLDER = "profile"
ROWS = 40  # operators in the table


class StepProfiler:
    """Records the steps `first` to `last` of the loop, everything that happens in them (selection, evaluation, saving too).

    In RUN/profile/ it writes steps-FIRST-LAST.rank-R.trace.json.gz (for chrome://tracing or ui.perfetto.dev) and
    steps-FIRST-LAST.rank-R.operators.txt, the operators that took most time of their own. A run that leaves off in between writes
    what it has; one that is continued behind `first` records nothing.

    Args:
        settings: logging.profile (mads.config.schema.ProfileConfig); without `start` nothing is done.
        message: says what was written.
    """

    def __init__(self, settings, run_dir: str | Path, rank: int, device: torch.device, message: Callable[[str], None]):
        active = settings.start is not None and rank in settings.ranks
        self.first = settings.start if active else None
        self.last = settings.start + settings.steps - 1 if active else None
        self._folder, self._rank = Path(run_dir) / FOLDER, rank
        self._cuda, self._message = device.type == "cuda", message
        self._running: profile | None = None

    def before(self, step: int) -> None:
        """`step`, counted from 1, is about to begin."""
        if step == self.first:
            activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._cuda else [])
            self._running = profile(activities=activities, record_shapes=True, acc_events=True)
            self._running.start()

    def after(self, step: int) -> None:
        """`step` is over: the last one is followed by writing the files."""
        if step == self.last:
            self.close(step)

    def close(self, step: int) -> None:
        """The run leaves off after `step`."""
        if self._running is None:
            return
        running, self._running = self._running, None
        if self._cuda:
            torch.cuda.synchronize()
        running.stop()
        if step < self.first:  # stopped before the step that was about to begin
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        base = self._folder / f"steps-{self.first}-{step}.rank-{self._rank}"
        running.export_chrome_trace(f"{base}.trace.json.gz")
        by = "self_device_time_total" if self._cuda else "self_cpu_time_total"
        table = running.key_averages().table(sort_by=by, row_limit=ROWS, max_name_column_width=60)
        Path(f"{base}.operators.txt").write_text(table + "\n", encoding="utf-8")
        self._message(f"profile of the steps {self.first} to {step}: {base}.trace.json.gz, {base}.operators.txt")
