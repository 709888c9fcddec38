"""Start the workers of a run on this machine, and find out in a worker what the launcher said."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Sequence


@dataclass(frozen=True)
class Place:
    """What a launcher (deepspeed, torchrun, or mads itself) told this process."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int


def place() -> Place | None:
    """This process's place in a launched job, or None if nobody launched it.

    Raises:
        ValueError: if the launcher's variables are incomplete.
    """
    if "RANK" not in os.environ:
        return None
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"RANK is set, but {', '.join(missing)} is not; start with `mads train`, deepspeed or torchrun, or unset RANK")
    world = int(os.environ["WORLD_SIZE"])
    rank = int(os.environ["RANK"])
    # The deepspeed launcher sets LOCAL_SIZE, torchrun LOCAL_WORLD_SIZE; a job on one machine needs neither.
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world)))
    return Place(rank, int(os.environ.get("LOCAL_RANK", rank)), world, local_world)


def become_single_process() -> Place:
    """Make this process a job of one."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    return place()


def strip_launcher_arguments(arguments: Sequence[str]) -> list[str]:
    """Without the --local_rank=N that the deepspeed launcher appends."""
    return [a for a in arguments if not a.startswith("--local_rank")]


def run_workers(workers: int, overrides: Sequence[str]) -> int:
    """Start `workers` processes of `mads.train` with the deepspeed launcher and wait; returns the exit code.

    The arguments go as a list, never through a shell. On a CPU each worker gets its share of the cores: with more threads than
    cores OpenMP spins and a step takes many times longer.
    """
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    with socket.socket() as s:  # deepspeed's fixed default port would keep two jobs from running side by side
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(workers), "--master_port", str(port),
               "--log_level", "warning", "--module", "mads.train", *overrides]
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        return process.wait()
