"""Real processes of the mads command, for the end-to-end tests."""

import os
import subprocess
import sys
import time
from pathlib import Path

from run_support import OVERRIDES, REWARD, curve

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
MADS = [sys.executable, "-m", "mads.cli"]
REPOSITORY = Path(__file__).resolve().parent.parent


def environment(**variables):
    kept = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES and not k.startswith("WANDB_")}
    return kept | {"OMP_NUM_THREADS": "1"} | variables


def settings(prepared, run_dir, *overrides):
    """The overrides of a tiny run."""
    rewards = [] if any(o.startswith("selection=") for o in overrides) else REWARD
    return [*OVERRIDES, *rewards, f"data.dir={prepared}", f"run_dir={run_dir}", *overrides]


def run(command, cwd, timeout=300, **variables):
    """Run to the end; stdout and stderr are text."""
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=timeout
    )


def undisturbed(prepared, folder, *overrides):
    """The curve of a run of two workers to its end."""
    done = run([*MADS, "train", "--workers", 2, *settings(prepared, folder / "run", *overrides)], folder)
    assert done.returncode == 0, done.stderr
    return curve(folder / "run")


def start(command, cwd, log):
    """Start without waiting; stdout and stderr go to the file `log`."""
    with open(log, "wb") as out:
        return subprocess.Popen([str(c) for c in command], cwd=cwd, env=environment(), stdout=out, stderr=subprocess.STDOUT)


def children(pid):
    """Process ids of a process's children, in the order they were started."""
    return sorted(int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, what, timeout=90.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"after {timeout} s: {what}"
        time.sleep(0.02)


def expect_bad_input(done, *words):
    """A run ended with exit code 2, said one thing that holds every word, and showed no traceback."""
    assert done.returncode == 2, (done.returncode, done.stderr[-3000:])
    said_by = [line for line in done.stderr.splitlines() if line.startswith("mads ")]
    assert len(said_by) == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)
