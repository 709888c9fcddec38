"""How a run's processes end: killed workers (P7), restarts (K6), signals, exit codes."""

import json
import os
import signal

import numpy as np
import pytest
from command_support import MADS, alive, children, expect_bad_input, run, settings, start, wait_until
from run_support import curve
from safetensors.numpy import load_file

FULL = pytest.mark.full
LONG = ["train.steps=60", "selection.interval=20", "checkpoint.interval=10", "train.eval_interval=30", "checkpoint.keep_last=9"]
ENDLESS = ["train.steps=100000", "selection=random", "train.eval_interval=100000"]


def trained_steps(run_dir):
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return max((line["step"] for line in map(json.loads, lines) if line["kind"] == "train"), default=0)


def final_weights(run_dir):
    files = sorted((run_dir / "checkpoints" / "step-00000060").glob("*.safetensors"))
    assert files
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def test_k6_killed_between_checkpoints_and_restarted_equals_the_undisturbed_run_bit_for_bit(prepared, tmp_path):
    whole = run([*MADS, "train", "--workers", 2, *settings(prepared, tmp_path / "whole", *LONG)], tmp_path)
    assert whole.returncode == 0, whole.stderr
    run_dir = tmp_path / "killed"
    command = [*MADS, "train", "--workers", 2, *settings(prepared, run_dir, *LONG)]
    process = start(command, tmp_path, tmp_path / "log")
    wait_until(lambda: trained_steps(run_dir) >= 23 or process.poll() is not None, "no train line past step 23")
    workers = children(process.pid)
    assert process.poll() is None and len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert process.wait(timeout=30) == 128 + signal.SIGKILL
    assert not any(alive(worker) for worker in workers)
    said = (tmp_path / "log").read_text()
    assert "worker 1 was killed by signal 9" in said and "rank 1 died" in said, said
    saved = max(int(p.name.split("-")[1]) for p in (run_dir / "checkpoints").glob("step-*"))
    reached = trained_steps(run_dir)
    assert 20 <= saved < 60 and saved <= reached < 60
    again = run([*command, "logging.console=true"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"resuming step-{saved:08d}" in again.stdout
    assert curve(run_dir) == curve(tmp_path / "whole")
    ours, theirs = final_weights(run_dir), final_weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name in theirs:
        assert np.array_equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("to_end", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=FULL)])
def test_a_signal_to_the_command_ends_all_workers(prepared, tmp_path, to_end):
    process = start([*MADS, "train", "--workers", 2, *settings(prepared, tmp_path / "run", *ENDLESS)], tmp_path, tmp_path / "log")
    wait_until(lambda: trained_steps(tmp_path / "run") >= 3 or process.poll() is not None, "no train line")
    workers = children(process.pid)
    assert len(workers) == 2
    process.send_signal(to_end)
    assert process.wait(timeout=20) == 128 + to_end
    assert not any(alive(worker) for worker in workers)
    said = (tmp_path / "log").read_text()
    assert f"{to_end.name} received" in said and "Traceback" not in said


# In `make test` a worker is killed by the test of K6.
@pytest.mark.parametrize("victim", ["command", pytest.param("worker", marks=FULL)])
def test_p7_a_killed_worker_and_a_killed_command_leave_no_process_behind(prepared, tmp_path, victim):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    process = start([*MADS, "train", "--workers", 2, *settings(prepared, run_dir, *ENDLESS)], tmp_path, log)
    wait_until(lambda: trained_steps(run_dir) >= 3 or process.poll() is not None, "no train line")
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[0] if victim == "worker" else process.pid, signal.SIGKILL)
    assert process.wait(timeout=30) == (128 + signal.SIGKILL if victim == "worker" else -signal.SIGKILL)
    wait_until(lambda: not any(map(alive, workers)), f"workers {workers} outlive the {victim}", timeout=30)
    if victim == "worker":
        assert "worker 0 was killed by signal 9" in log.read_text()


def test_a_loss_that_is_not_finite_ends_all_ranks_with_its_name(prepared, tmp_path):
    overrides = ["selection=random", "optim.lr=1e30", "optim.grad_clip=0", "schedule.warmup_steps=0", "schedule=constant"]
    done = run([*MADS, "train", "--workers", 2, *settings(prepared, tmp_path / "run", *overrides)], tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("mads train: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert "the step was not taken" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("found_by", [pytest.param("every rank", marks=FULL), "rank 0"])
def test_what_a_worker_finds_wrong_ends_all_with_exit_code_2_and_one_message(prepared, tmp_path, found_by):
    (tmp_path / "file").write_text("")
    places, words = {
        "every rank": ((tmp_path / "nothing", tmp_path / "run"), (str(tmp_path / "nothing"), "no manifest.json", "mads prepare")),
        "rank 0": ((prepared, tmp_path / "file"), (f"run_dir={tmp_path / 'file'} cannot be written", "choose another run_dir")),
    }[found_by]
    expect_bad_input(run([*MADS, "train", "--workers", 2, *settings(*places)], tmp_path), *words)
