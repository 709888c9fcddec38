"""What Slurm tells a task of `srun`, in the words of torch.distributed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping

from mads.config.compose import ConfigError

FIRST_PORT, PORTS = 15000, 17000  # below those that Linux gives to programs that ask for any
ASK_S = 30.0  # an answer of scontrol


def launched_by_slurm(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several tasks of `srun`. A batch script and a shell on a node have no step of several tasks: there
    `mads train` starts its own processes."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    return "RANK" not in environment and "SLURM_PROCID" in environment and tasks.isdecimal() and int(tasks) > 1


def task_of_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process or one above it."""
    return "SLURM_STEP_NUM_TASKS" in environment


def slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT of a task of `srun`.

    Raises:
        ConfigError: a variable is missing, or Slurm does not say where the first node is.
    """
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID")
    missing = [name for name in names if name not in environment]
    if missing:
        raise ConfigError(f"this is a task of srun, but {', '.join(missing)} is not set; start it by srun, sbatch or mads submit")
    # Two jobs on one node, and two steps of one job, must not share a port.
    port = FIRST_PORT + (31 * int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", 0))) % PORTS
    on_each = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": str(on_each[int(environment["SLURM_NODEID"])]),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_address(environment),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(port),
    }


def tasks_per_node(text: str) -> list[int]:
    """Slurm's short form written out: "2(x3),1" -> [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE={text!r} is not what Slurm writes")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def first_address(environment: Mapping[str, str]) -> str:
    """The address by which Slurm itself reaches the first node of the step: a node's name need not be one that resolves.

    Raises:
        ConfigError: with what to do where scontrol is not to be had, as in a container.
    """
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    remedy = "set MASTER_ADDR to the address of the first node before srun"
    if shutil.which("scontrol") is None:
        raise ConfigError(f"scontrol, which knows the address of the first of the nodes {nodes}, is not here; {remedy}")
    first = _scontrol("show", "hostnames", nodes).split("\n")[0]
    found = re.search(r"\bNodeAddr=(\S+)", _scontrol("--oneliner", "show", "node", first)) if first else None
    if found is None:
        raise ConfigError(f"scontrol does not say where the first of the nodes {nodes} is; {remedy}")
    return found[1]


def _scontrol(*arguments: str) -> str:
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=ASK_S)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""
