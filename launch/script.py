"""The Slurm script of a run, as text: a pure function of the cluster, the run's overrides and where it lies."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mads.launch.slurm import FIRST_PORT, PORTS
from omegaconf import DictConfig

REQUEUE_CODE = 85  # of a run that was told to leave, has saved, and wants to go on
# Seconds that the other processes get when one has ended. Not --kill-on-bad-exit: a process that leaves with REQUEUE_CODE a
# moment before the others would get them killed, and srun returns the highest exit code, 137.
LAST_PROCESS_S = 60

HEAD = """\
#!/usr/bin/env bash
# Written by mads submit. A job of this script that is submitted again goes on from the newest checkpoint."""

CLEAN = """\
# Not those of the shell that submitted.
unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"""

PLACE = f"""\
# The address by which Slurm itself reaches the first node: a node's name need not be one that resolves.
if [[ -z ${{MASTER_ADDR:-}} ]]; then
  read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  MASTER_ADDR=$(scontrol --oneliner show node "$first" | grep -o 'NodeAddr=[^ ]*')
  MASTER_ADDR=${{MASTER_ADDR#NodeAddr=}}
fi
# Two jobs that share a node must not share a port.
export MASTER_ADDR MASTER_PORT=${{MASTER_PORT:-$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))}}"""

REQUEUE = f"""\
code=$?
# {REQUEUE_CODE}: the run was told to leave and has saved. The same job waits for its turn again and goes on from there.
if [[ $code -eq {REQUEUE_CODE} ]]; then
  echo "mads submit: requeueing job $SLURM_JOB_ID (start $((${{SLURM_RESTART_COUNT:-0}} + 1)) ended)"
  scontrol requeue "$SLURM_JOB_ID" || echo 'mads submit: Slurm refused to requeue; submit the script again to go on' >&2
fi
exit "$code\""""


@dataclass(frozen=True)
class Job:
    """What is submitted.

    overrides: of the run, as given on the command line, without those of the cluster
    run_dir: the run's folder, or the one above those of the seeds
    folder: where the command was typed; the job runs there
    python: words that start Python on a node
    """

    overrides: Sequence[str]
    run_dir: str
    folder: str
    python: Sequence[str]


def slurm_script(cluster: DictConfig, job: Job) -> str:
    """The text of the script.

    Args:
        cluster: a validated ClusterConfig.

    Raises:
        ValueError: a folder's name cannot be written into a #SBATCH line.
    """
    parts = [HEAD, "\n".join(f"#SBATCH --{option}" for option in options(cluster, job))]
    parts.append(
        "# Not those of the shell that submitted.\nunset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    )
    if cluster.cpus_per_task is not None:
        parts.append(f"export OMP_NUM_THREADS={cluster.cpus_per_task}")
    if cluster.setup:
        parts.append("\n".join(["# cluster.setup", *cluster.setup]))
    parts += [PLACE, "\n".join(_arguments(cluster, job)), _start(cluster, job)]
    # The exit code of srun is the script's own where nobody asks for it.
    return "\n\n".join(parts) + "\n" + (REQUEUE + "\n" if cluster.requeue else "")


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
        "signal": None if c.signal_s is None else f"USR1@{c.signal_s}",
    }
    yield from (f"{name}={value}" for name, value in given.items() if value is not None)
    yield "requeue" if c.requeue else "no-requeue"
    if c.seeds:
        yield f"array=0-{len(c.seeds) - 1}"
    yield f"chdir={_quoted(job.folder)}"
    # In a path of a log % is the start of a number, and %% is itself.
    log = "%x-%A_%a.log" if c.seeds else "%x-%j.log"
    yield f"output={_quoted(job.run_dir.replace('%', '%%') + '/slurm/' + log)}"
    yield "open-mode=append"
    for name, value in sorted(c.sbatch_options.items()):
        name = name.replace("_", "-")
        if value is None or value is False:
            continue
        yield name if value is True else f"{name}={_quoted(str(value))}"


def _quoted(value: str) -> str:
    """One word of a #SBATCH line, which sbatch reads without a shell.

    Raises:
        ValueError: it has a character that these lines cannot hold.
    """
    if set(value) & set('\n\r"\\'):
        raise ValueError(f"{value!r}: Slurm cannot take a double quote, a backslash or an end of line here; choose another name")
    return f'"{value}"' if set(value) & set(" \t#';") or not value else value


def _arguments(cluster: DictConfig, job: Job) -> Iterator[str]:
    """The run's overrides as a bash array, byte for byte."""
    own = ("run_dir=", "train.seed=") if cluster.seeds else ()
    yield "overrides=("
    yield from (f"  {shlex.quote(o)}" for o in job.overrides if not o.lstrip("+~").startswith(own or "\n"))
    yield ")"
    if cluster.seeds:
        # Hydra reads a quoted value with its own escapes: of the quote itself, and of a backslash before one.
        folder = job.run_dir.replace("'", "\\'")
        yield f"seeds=({' '.join(map(str, cluster.seeds))})"
        yield "seed=${seeds[$SLURM_ARRAY_TASK_ID]}"
        yield f"""overrides+=("train.seed=$seed" {shlex.quote(f"run_dir='{folder}/seed-")}"$seed"\\')"""


def _start(cluster: DictConfig, job: Job) -> str:
    # Since Slurm 22.05 a step does not inherit the cores of its job's tasks.
    cores = "" if cluster.cpus_per_task is None else f" --cpus-per-task={cluster.cpus_per_task}"
    python = " ".join(shlex.quote(word) for word in job.python)
    return f"""\
# One task is one process of the run; Slurm's variables tell it its rank. The signal before the time limit goes to them.
srun --kill-on-bad-exit=0 --wait={LAST_PROCESS_S} --label{cores} \\
  {python} -u -m mads.train "${{overrides[@]}}\""""
