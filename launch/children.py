"""Run one mads command as a child process with its share of the cores, and know what it cost."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mads.launch.processes import GRACE_S, PARENT

# Of a launcher around this one: a child is a job of its own.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID")
POLL_S = 0.05


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (128 + the signal's number if it was killed), wall and CPU seconds."""

    code: int
    seconds: float
    cpu_seconds: float


def child_environment(threads: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a child: this process's, without its place in a job, with so many threads for every library."""
    kept = {k: v for k, v in environment.items() if k not in LAUNCHED}
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return kept | dict.fromkeys(libraries, str(threads)) | {PARENT: str(os.getpid())}


def run_mads(arguments: Sequence[str], log: Path, threads: int = 1) -> Ended:
    """`mads ARGUMENTS` in a process of its own, what it says appended to `log`. It ends with this process, however that ends."""
    started = time.perf_counter()
    with open(log, "ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-u", "-m", "mads.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=child_environment(threads, os.environ),
        )
        try:
            _, status, used = os.wait4(child.pid, 0)
        except BaseException:
            _end(child.pid)
            raise
        child.returncode = os.waitstatus_to_exitcode(status)  # it is reaped already; Popen must not wait for it again
    code = child.returncode if child.returncode >= 0 else 128 - child.returncode
    return Ended(code, time.perf_counter() - started, used.ru_utime + used.ru_stime)


def _end(pid: int) -> None:
    """Ask, wait, then kill."""
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(POLL_S)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def end_with(parent: int) -> None:
    """Let this process end when `parent`, which started it, does: a launcher's worker would go on training unseen. Does nothing
    in a process that `parent` did not start."""
    if sys.platform == "linux" and os.getppid() == parent:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
