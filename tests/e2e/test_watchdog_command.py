"""The real command and real workers, with and without a launcher that looks after them, when a rank stops, hangs or is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from command_support import MADS, REPOSITORY, alive, children, environment, settings, start, wait_until
from test_processes_end import trained_steps

from mads.launch import exits
from mads.launch.processes import SPEAK_S, free_port

LIMIT_S = 6
RUN = ["selection=random", "train.steps=100000", "train.eval_interval=100000", f"parallel.hang_timeout_s={LIMIT_S}"]
SLACK_S = 20.0  # of a loaded machine
STARTING_S = 120.0


def unwatched(prepared, folder, rank, batch):
    """Two ranks as a launcher starts them that does not look after them; rank `rank` hangs before a batch."""
    port, ranks = free_port(), []
    for own in (0, 1):
        variables = {"RANK": own, "LOCAL_RANK": own, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [
            sys.executable,
            REPOSITORY / "tests" / "faulty_worker.py",
            rank,
            batch,
            *settings(prepared, folder / "run", *RUN),
        ]
        with open(folder / f"log{own}", "wb") as log:
            ranks.append(
                subprocess.Popen(
                    [str(c) for c in command],
                    cwd=folder,
                    env=environment(**{name: str(value) for name, value in variables.items()}),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return ranks


@pytest.fixture
def processes():
    started = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_a_rank_that_hangs_in_its_loader_is_named_without_a_launcher(prepared, tmp_path, processes):
    processes += unwatched(prepared, tmp_path, 1, 8)
    wait_until(lambda: trained_steps(tmp_path / "run") >= 7 or processes[0].poll() is not None, "no step 7", STARTING_S)
    begun = time.monotonic()
    codes = [process.wait(timeout=LIMIT_S + SLACK_S) for process in processes]
    said = [(tmp_path / f"log{rank}").read_text() for rank in (0, 1)]
    assert codes == [exits.HUNG, exits.HUNG], said
    assert time.monotonic() - begun > LIMIT_S / 2
    for text in said:
        assert "mads train: rank 1 hangs after step 7, in phase loader" in text and "next_or_hang" in text, text
    shown = json.loads((tmp_path / "run" / "heartbeat.json").read_text())
    assert shown["ended"].startswith("rank 1 hangs after step 7") and [r["step"] for r in shown["ranks"]] == [7, 7]


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_without_a_launcher(prepared, tmp_path, processes, victim):
    processes += unwatched(prepared, tmp_path, 1, 10**9)
    wait_until(lambda: trained_steps(tmp_path / "run") >= 5 or processes[0].poll() is not None, "no step 5", STARTING_S)
    processes[victim].kill()
    assert processes[1 - victim].wait(timeout=SLACK_S) == exits.HUNG
    said, reached = (tmp_path / f"log{1 - victim}").read_text(), trained_steps(tmp_path / "run")
    assert f"mads train: rank {victim} died" in said and f"come to step {reached}" in said, (said, reached)


def test_a_stopped_worker_ends_the_command_and_all_workers(prepared, tmp_path, processes):
    process = start([*MADS, "train", "--workers", 2, *settings(prepared, tmp_path / "run", *RUN)], tmp_path, tmp_path / "log")
    processes.append(process)
    wait_until(lambda: trained_steps(tmp_path / "run") >= 5 or process.poll() is not None, "no step 5", STARTING_S)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGSTOP)
    assert process.wait(timeout=LIMIT_S + SPEAK_S + SLACK_S) == exits.HUNG
    said = (tmp_path / "log").read_text()
    assert "mads train: rank 1 does not answer; last heard" in said and "Traceback" not in said, said
    assert f"come to step {trained_steps(tmp_path / 'run')}" in said, said
    wait_until(lambda: not any(map(alive, workers)), f"workers {workers} outlive the command", timeout=30)
