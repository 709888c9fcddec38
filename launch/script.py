"""The Slurm script of a run, as text: a pure function of the cluster, the run's overrides and where it lies."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from omegaconf import DictConfig

from mads.config.cluster import quoted_value
from mads.config.compose import ConfigError
from mads.launch import exits

FOLDER = "slurm"  # in the run folder: the script and the jobs' output
# Seconds that the other processes get when one has ended. Not --kill-on-bad-exit: a process that leaves with exits.PREEMPTED a
# moment before the others would get them killed, and srun returns the highest exit code, 137.
LAST_PROCESS_S = 60

HEAD = """\
#!/usr/bin/env bash
# Written by mads submit. A job of this script that is submitted again goes on from the newest checkpoint."""

CLEAN = """\
# Not those of the shell that submitted.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
# This shell outlives what it is told, to see how the run ends.
trap : TERM USR1"""

# The tasks would find it too (mads/launch/slurm.py), each with two questions to Slurm's controller.
PLACE = """\
# The address by which Slurm itself reaches the first node: a node's name need not be one that resolves.
if [[ -z ${MASTER_ADDR:-} ]]; then
  read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  MASTER_ADDR=$(scontrol --oneliner show node "$first" | grep -o 'NodeAddr=[^ ]*')
  MASTER_ADDR=${MASTER_ADDR#NodeAddr=}
fi
export MASTER_ADDR"""


@dataclass(frozen=True)
class Job:
    """What is submitted.

    overrides: of the run, as given on the command line, without those of the cluster
    run_dir: the run's folder, or the one above those of the tasks; absolute
    folder: where the command was typed; the job runs there
    python: words that start Python on a node
    tasks: of an array: each task's further overrides
    """

    overrides: Sequence[str]
    run_dir: str
    folder: str
    python: Sequence[str]
    tasks: Sequence[Sequence[str]] = field(default_factory=list)


def slurm_script(cluster: DictConfig, job: Job) -> str:
    """The text of the script.

    Args:
        cluster: a validated ClusterConfig.

    Raises:
        ConfigError: a folder's name cannot be written into a #SBATCH line, or into an override.
    """
    parts = [HEAD, "\n".join(f"#SBATCH --{option}" for option in options(cluster, job)), CLEAN]
    if cluster.cpus_per_task is not None:
        parts.append(f"export OMP_NUM_THREADS={cluster.cpus_per_task}")
    if cluster.setup:
        parts.append("\n".join(["# cluster.setup", *cluster.setup]))
    parts += [PLACE, _arguments(job.overrides)]
    if job.tasks:
        parts.append("\n".join(_tasks(job)))
    parts.append(_start(cluster, job))
    # The exit code of srun is the script's own where nobody asks for it.
    return "\n\n".join(parts) + "\n" + (_requeue(cluster.requeues) + "\n" if cluster.requeues else "")


def options(cluster: DictConfig, job: Job) -> Iterator[str]:
    """The options of sbatch, without their dashes, in the quotes of its own small language."""
    c = cluster
    yield f"job-name={c.job_name}"
    yield f"nodes={c.nodes}"
    yield f"ntasks-per-node={c.tasks_per_node}"
    given = {
        "gpus-per-node": c.gpus_per_node or None,
        "cpus-per-task": c.cpus_per_task,
        "mem": c.memory,
        "partition": c.partition,
        "account": c.account,
        "time": c.time_limit,
        # Without "B:" it goes to the tasks of srun and not to this script.
        "signal": None if c.signal_s is None else f"USR1@{c.signal_s}",
    }
    yield from (f"{name}={value}" for name, value in given.items() if value is not None)
    yield "requeue" if c.requeues else "no-requeue"
    if job.tasks:
        yield f"array=0-{len(job.tasks) - 1}"
    yield f"chdir={_quoted(job.folder)}"
    # In a path of a log % is the start of a number, and %% is itself.
    log = "%x-%A_%a.log" if job.tasks else "%x-%j.log"
    yield f"output={_quoted(os.path.join(job.run_dir.replace('%', '%%'), FOLDER, log))}"
    yield "open-mode=append"
    for name, value in sorted(c.sbatch_options.items()):
        name = name.replace("_", "-")
        if value is None or value is False:
            continue
        yield name if value is True else f"{name}={_quoted(str(value))}"


def _quoted(value: str) -> str:
    """One word of a #SBATCH line, which sbatch reads without a shell.

    Raises:
        ConfigError: it has a character that these lines cannot hold.
    """
    if set(value) & set('\n\r"\\'):
        raise ConfigError(f"{value!r}: Slurm cannot take a double quote, a backslash or an end of line here; choose another name")
    return f'"{value}"' if set(value) & set(" \t#';") or not value else value


def _arguments(overrides: Sequence[str]) -> str:
    """The run's overrides as a bash array, byte for byte."""
    return "\n".join(["overrides=(", *(f"  {shlex.quote(o)}" for o in overrides), ")"])


def _tasks(job: Job) -> Iterator[str]:
    """What a task of an array adds. Hydra takes the last value of a key."""
    yield "case $SLURM_ARRAY_TASK_ID in"
    for number, task in enumerate(job.tasks):
        run_dir = "run_dir=" + quoted_value(os.path.join(job.run_dir, f"task-{number}"))
        yield f"  {number}) overrides+=({' '.join(shlex.quote(o) for o in (*task, run_dir))}) ;;"
    yield "esac"


def _start(cluster: DictConfig, job: Job) -> str:
    # Since Slurm 22.05 a step does not inherit the cores of its job's tasks.
    cores = "" if cluster.cpus_per_task is None else f" --cpus-per-task={cluster.cpus_per_task}"
    python = " ".join(shlex.quote(word) for word in job.python)
    return f"""\
# One task is one process of the run; Slurm's variables tell it its rank.
srun --kill-on-bad-exit=0 --wait={LAST_PROCESS_S} --label{cores} \\
  {python} -u -m mads.train "${{overrides[@]}}\""""


def _requeue(most: int) -> str:
    return f"""\
code=$?
# {exits.PREEMPTED}: the run was told to leave and has saved. The same job waits for its turn again and goes on from there.
if [[ $code -eq {exits.PREEMPTED} ]]; then
  if [[ ${{SLURM_RESTART_COUNT:-0}} -ge {most} ]]; then
    echo "mads submit: job $SLURM_JOB_ID was queued again {most} times, which is cluster.requeues; submit it again to go on" >&2
  else
    echo "mads submit: start $((${{SLURM_RESTART_COUNT:-0}} + 1)) of job $SLURM_JOB_ID has ended; it is queued again"
    scontrol requeue "$SLURM_JOB_ID" || echo 'mads submit: Slurm refused; submit the script again to go on' >&2
  fi
fi
exit "$code\""""
