"""`mads submit`: check everything, write the Slurm script of a run into its folder, give it to sbatch."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from mads.config.cluster import compose_cluster, split_overrides, task_overrides, validate_cluster
from mads.config.compose import ConfigError, compose
from mads.config.validate import validate
from mads.launch.script import FOLDER, Job, slurm_script

SCRIPT = "job.sh"  # in RUN_DIR/slurm
SBATCH_S = 120.0


def submit(overrides: Sequence[str], dry_run: bool, say: Callable[[str], None] = print) -> int:
    """Write and submit the job of a run; returns the exit code (0; 1: sbatch refused).

    Args:
        overrides: of the run, and those of the cluster, which begin with `cluster`.
        dry_run: only print the script and the commands that would submit it.
        say: takes what is told.

    Raises:
        ConfigError: anything that is wrong before sbatch is called. Nothing has been written then.
    """
    cluster, job = plan(overrides)
    text = slurm_script(cluster, job)
    script = Path(job.run_dir) / FOLDER / SCRIPT
    if dry_run:
        say(text)
        for number in range(cluster.chain):
            say("# " + shlex.join(sbatch_command(script, cluster, f"JOB_{number}" if number else None)))
        return 0
    if shutil.which("sbatch") is None:
        raise ConfigError("sbatch is not on this machine; submit from a login node of the cluster, or look with --dry-run")
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(text, encoding="utf-8")
    say(f"script: {script}")
    before = None
    for number in range(cluster.chain):
        done = subprocess.run(sbatch_command(script, cluster, before), capture_output=True, text=True, timeout=SBATCH_S)
        if done.returncode != 0:
            sent = f" {number} of {cluster.chain} jobs are submitted." if number else ""
            print(f"mads submit: sbatch refused: {done.stderr.strip()}{sent}", file=sys.stderr)
            return 1
        after = f" after job {before}" if before else ""
        before = done.stdout.strip().split(";")[0]  # on a cluster of clusters: number;name
        say(f"job: {before}{after}")
    return 0


def plan(overrides: Sequence[str]) -> tuple[DictConfig, Job]:
    """The cluster and the job, both checked: the run, or each task of an array, for as many processes as the job has.

    Raises:
        ConfigError: with what is wrong.
    """
    own, run = split_overrides(overrides)
    cluster = compose_cluster(own)
    validate_cluster(cluster)
    tasks = [task_overrides(entry) for entry in cluster.array]
    base = compose(run)
    for extra in tasks or [[]]:
        given = [*run, *extra]
        try:
            config = compose(given) if extra else base
            validate(config, cluster.nodes * cluster.tasks_per_node, cluster.gpus_per_node > 0, given)
        except ConfigError as error:
            raise ConfigError(f"with {' '.join(extra)}: {error}" if extra else str(error)) from error
    # A task runs in the folder where the command was typed, so that relative paths mean what they mean there.
    folder = os.getcwd()
    return cluster, Job(run, os.path.join(folder, base.run_dir), folder, list(cluster.python) or [sys.executable], tasks)


def sbatch_command(script: Path, cluster: DictConfig, before: str | None) -> list[str]:
    """The words that submit the script; `before`: the number of the job that has to end first."""
    if before is None:
        return ["sbatch", "--parsable", str(script)]
    # A job that can never start, because the one before it was done, must not stay in the queue.
    return ["sbatch", "--parsable", f"--dependency={cluster.dependency}:{before}", "--kill-on-invalid-dep=yes", str(script)]
