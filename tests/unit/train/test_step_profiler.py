"""Which steps a profile holds when a run leaves off early, or begins late."""

import gzip
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mads.train.profile import StepProfiler

WINDOW = SimpleNamespace(start=3, steps=4, ranks=[0, 2])


def check_window(steps, files):
    said = []
    with tempfile.TemporaryDirectory() as folder:
        profiler = StepProfiler(WINDOW, folder, 2, torch.device("cpu"), said.append)
        for step in steps:
            profiler.before(step)
            with torch.profiler.record_function(f"step {step}"):
                torch.ones(3).sum()
            profiler.after(step)
        profiler.close(steps[-1])
        if files is None:
            assert os.listdir(folder) == [] and said == []
            return
        trace = Path(folder, "profile", f"{files}.rank-2.trace.json.gz")
        assert trace.is_file() and len(said) == 1 and str(trace) in said[0]
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    first, last = map(int, files.split("-")[1:])
    spans = [e["name"] for e in events if e.get("cat") == "user_annotation"]
    assert spans == [f"step {n}" for n in range(first, last + 1)]


@pytest.mark.parametrize(
    "steps, files",
    [
        (range(1, 10), "steps-3-6"),
        (range(1, 5), "steps-3-4"),  # ends within the window
        (range(1, 3), None),
        (range(4, 9), None),  # continued behind its beginning
    ],
)
def test_a_window_of_steps(steps, files):
    check_window(steps, files)


def test_a_run_stopped_before_the_first_step_of_the_window_writes_nothing(tmp_path):
    profiler = StepProfiler(WINDOW, tmp_path, 0, torch.device("cpu"), pytest.fail)
    profiler.before(3)
    profiler.close(2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings, rank", [(WINDOW, 1), (SimpleNamespace(start=None, steps=5, ranks=[0]), 0)])
def test_other_ranks_and_runs_without_a_window_record_nothing(settings, rank, tmp_path):
    profiler = StepProfiler(settings, tmp_path, rank, torch.device("cpu"), pytest.fail)
    for step in range(1, 8):
        profiler.before(step)
        profiler.after(step)
    profiler.close(7)
    assert not list(tmp_path.iterdir())
