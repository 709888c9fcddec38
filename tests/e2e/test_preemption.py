"""SIGTERM and SIGUSR1: all ranks finish the step, save, and leave with 85; the same command goes on, bit for bit."""

import os
import signal

import pytest
from command_support import MADS, alive, children, run, settings, start, undisturbed, wait_until
from run_support import curve
from test_processes_end import trained_steps

from mads.launch import exits

FULL = pytest.mark.full
RUN = ["train.steps=40", "selection.interval=10", "train.eval_interval=10"]


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    return undisturbed(prepared, tmp_path_factory.mktemp("whole"), *RUN)


def preempt(prepared, tmp_path, number, victim, ready):
    """Start, signal, wait for the end; (exit code, what it said, step of the checkpoint, last trained step)."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    command = [*MADS, "train", "--workers", 2, *settings(prepared, run_dir, *RUN)]
    process = start(command, tmp_path, log)
    wait_until(lambda: process.poll() is not None or len(children(process.pid)) == 2, "no workers")
    workers = children(process.pid)
    wait_until(lambda: process.poll() is not None or ready(run_dir), "not ready for the signal")
    assert process.poll() is None, log.read_text()
    os.kill(process.pid if victim is None else workers[victim], number)
    code = process.wait(timeout=120)
    assert not any(map(alive, workers))
    saved = [int(p.name.split("-")[1]) for p in (run_dir / "checkpoints").glob("step-*")]
    return command, code, log.read_text(), saved, trained_steps(run_dir)


@pytest.mark.parametrize(
    "number, victim",
    [(signal.SIGTERM, None), pytest.param(signal.SIGUSR1, 1, marks=FULL), pytest.param(signal.SIGTERM, 0, marks=FULL)],
)
def test_a_signal_to_the_command_or_to_any_rank_saves_and_the_next_start_resumes_exactly(
    prepared, tmp_path, whole, number, victim
):
    command, code, said, saved, reached = preempt(prepared, tmp_path, number, victim, lambda d: trained_steps(d) >= 4)
    assert code == exits.PREEMPTED == 85, said
    assert saved == [reached] and 4 <= reached < 40, (saved, reached)
    assert "Traceback" not in said
    again = run([*command, "logging.console=true"], tmp_path)
    assert again.returncode == exits.DONE, again.stderr
    assert f"resuming step-{reached:08d}" in again.stdout
    assert curve(tmp_path / "run") == whole


def test_a_signal_before_the_first_step_leaves_nothing_half_done(prepared, tmp_path, whole):
    command, code, said, saved, reached = preempt(prepared, tmp_path, signal.SIGUSR1, None, lambda d: True)
    assert code == exits.PREEMPTED, said
    assert (saved, reached) == ([], 0) and "Traceback" not in said
    assert run(command, tmp_path).returncode == exits.DONE
    assert curve(tmp_path / "run") == whole


@pytest.mark.full
def test_a_second_signal_to_the_command_ends_it_at_once(prepared, tmp_path):
    command = [*MADS, "train", "--workers", 2, *settings(prepared, tmp_path / "run", *RUN, "train.steps=100000")]
    process = start(command, tmp_path, tmp_path / "log")
    wait_until(lambda: process.poll() is not None or len(children(process.pid)) == 2, "no workers")
    for _ in range(2):  # while the workers are still being loaded
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM received" in (tmp_path / "log").read_text() or process.poll() is not None, "not told")
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
