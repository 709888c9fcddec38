"""What `mads submit` asks of a Slurm cluster (conf/cluster): composed apart from the run, of which it is no part."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mads.config.compose import ConfigError, _check_fields, _readable


@dataclass
class ClusterConfig:
    """A job's nodes, times and surroundings. What is None is left to the cluster."""

    nodes: int = 1
    tasks_per_node: int = MISSING  # processes of the run: as many as GPUs
    gpus_per_node: int = MISSING  # 0: a cluster without
    cpus_per_task: Optional[int] = None  # also the threads of a process, OMP_NUM_THREADS
    memory: Optional[str] = None  # of a node, as Slurm writes it: 200G
    partition: Optional[str] = None
    account: Optional[str] = None
    time_limit: Optional[str] = None  # hours:minutes:seconds or days-hours
    # Seconds before the time limit at which every process gets SIGUSR1, ends its step, saves and leaves. None: no warning. Slurm
    # may send it up to a minute early.
    signal_s: Optional[int] = 120
    # How often the job may queue itself again when it was told to leave and has saved (exit code 85); with any, Slurm queues it
    # again too, when a node fails. A bound: a time limit that is too short for one step must not start a job for ever.
    requeues: int = 100
    chain: int = 1  # so many jobs, each waiting for the one before it
    dependency: str = "afterany"  # afterany: the next job starts however the one before ended; afternotok: unless it was done
    array: list[str] = field(default_factory=list)  # one run for each entry, with its overrides, in RUN_DIR/task-N
    job_name: str = "mads"
    sbatch_options: dict[str, Any] = field(default_factory=dict)  # further ones of sbatch: {qos: high, exclusive: true}
    setup: list[str] = field(default_factory=list)  # shell lines before the start, as they are: module load cuda
    # The words that start Python on a node: [venv/bin/python], [apptainer, exec, --nv, mads.sif, python3]. Empty: the interpreter
    # that submits.
    python: list[str] = field(default_factory=list)


@dataclass
class SubmitConfig:
    """The root of conf/submit.yaml."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)


SCHEMA = "submit_schema"
# Options of sbatch that a key of its own sets -> that key.
OWN_OPTIONS = {
    "nodes": "nodes",
    "ntasks": "tasks_per_node",
    "ntasks-per-node": "tasks_per_node",
    "gpus-per-node": "gpus_per_node",
    "cpus-per-task": "cpus_per_task",
    "mem": "memory",
    "partition": "partition",
    "account": "account",
    "time": "time_limit",
    "signal": "signal_s",
    "requeue": "requeues",
    "no-requeue": "requeues",
    "dependency": "chain",
    "array": "array",
    "job-name": "job_name",
}
SET_BY_MADS = ("output", "error", "open-mode", "chdir", "wrap", "parsable", "test-only", "wait")
# Not minutes alone, nor minutes:seconds, which Slurm knows too: who writes 24:00 means hours.
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+)(?::(?P<minutes>\d\d))?(?::(?P<seconds>\d\d))?")
NAME = re.compile(r"[a-z][a-z-]*")


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(those of the cluster, those of the run). A search path for files of one's own is of both."""
    own, run = [], []
    for override in overrides:
        root = override.lstrip("+~").split("=", 1)[0].split("@", 1)[0].split(".", 1)[0]
        if root == "cluster" or override.startswith("hydra.searchpath="):
            own.append(override)
        if root != "cluster":
            run.append(override)
    return own, run


def compose_cluster(overrides: Sequence[str] = ()) -> DictConfig:
    """A ClusterConfig from overrides that begin with `cluster`.

    Raises:
        ConfigError: for an unknown key, a wrong type, or a file that is not there.
    """
    ConfigStore.instance().store(name=SCHEMA, node=SubmitConfig, provider="mads")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(config_module="mads.conf", version_base="1.3"):
            config = hydra_compose("submit", overrides=[_marked(o) for o in overrides])
        OmegaConf.resolve(config)
        _check_fields(config)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        text = str(error) if isinstance(error, ConfigError) else _readable(error)
        raise ConfigError(text.replace("mads train --cfg job", "mads submit --cfg job")) from error
    return config.cluster


def _marked(override: str) -> str:
    """cluster.sbatch_options takes any key: Hydra wants its overrides marked."""
    return "++" + override if override.startswith("cluster.sbatch_options") else override


def validate_cluster(cluster: DictConfig) -> None:
    """Check a composed cluster against itself.

    Raises:
        ConfigError: with all violations, one a line.
    """
    missing = sorted(OmegaConf.missing_keys(cluster))
    if missing:
        raise ConfigError("no value for: " + ", ".join(f"cluster.{key}" for key in missing))
    errors = [*_numbers(cluster), *_times(cluster), *_lines(cluster), *_options(cluster), *_array(cluster)]
    if errors:
        raise ConfigError("\n".join(errors))


def _numbers(c) -> Iterator[str]:
    for key, least in (
        ("nodes", 1),
        ("tasks_per_node", 1),
        ("gpus_per_node", 0),
        ("cpus_per_task", 1),
        ("requeues", 0),
        ("chain", 1),
    ):
        if c[key] is not None and c[key] < least:
            yield f"cluster.{key}={c[key]} must be at least {least}"
    if c.gpus_per_node > 0 and c.gpus_per_node != c.tasks_per_node:
        yield (
            f"cluster.gpus_per_node={c.gpus_per_node} and cluster.tasks_per_node={c.tasks_per_node}: every process trains on one "
            "GPU of its own; make them equal, or set gpus_per_node=0"
        )


def time_limit_s(text: str) -> int | None:
    """Seconds of a time limit; None: it is not written as hours:minutes:seconds or days-hours[:minutes[:seconds]]."""
    found = TIME.fullmatch(text)
    if found is None or (found["days"] is None and found["seconds"] is None):
        return None
    days, hours, minutes, seconds = (int(found[name] or 0) for name in ("days", "hours", "minutes", "seconds"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _times(c) -> Iterator[str]:
    limit = None if c.time_limit is None else time_limit_s(c.time_limit)
    if c.time_limit is not None and c.time_limit.isdecimal():
        yield (
            f"cluster.time_limit={c.time_limit} is a number. Without quotes YAML reads 24:00:00 as 86400: write "
            "time_limit: '24:00:00' in a file"
        )
    elif c.time_limit is not None and limit is None:
        yield f"cluster.time_limit={c.time_limit} must be hours:minutes:seconds or days-hours, as in 24:00:00 or 1-0"
    elif limit is not None and limit <= (c.signal_s or 0):
        yield f"cluster.time_limit={c.time_limit} is {limit} s, all of it within cluster.signal_s={c.signal_s} of its end"
    if c.signal_s is not None and not 1 <= c.signal_s <= 65535:
        yield f"cluster.signal_s={c.signal_s} must lie in [1, 65535]"
    if c.dependency not in ("afterany", "afternotok"):
        yield f"cluster.dependency={c.dependency!r} is not one of afterany, afternotok"
    elif c.dependency == "afternotok" and c.chain == 1:
        yield "cluster.dependency=afternotok is for a chain of jobs; set cluster.chain, or leave it out"
    elif c.dependency == "afternotok" and c.array:
        yield "cluster.dependency=afternotok would wait for a failure of every task of cluster.array; use afterany"


def _lines(c) -> Iterator[str]:
    """sbatch has a small language of its own in its #SBATCH lines, without a way to write these characters."""
    for key in ("memory", "partition", "account", "job_name"):
        if c[key] is not None and (not c[key] or set(c[key]) & set("\n\r\"'\\# \t")):
            yield f"cluster.{key}={c[key]!r} must have no space, quote, backslash or #"
    if "%" in c.job_name or "/" in c.job_name:
        yield f"cluster.job_name={c.job_name!r} becomes the name of the log: it must have no % or /"
    for i, line in enumerate(c.setup):
        if "\0" in line or line.lstrip().startswith("#SBATCH"):
            yield f"cluster.setup[{i}]={line!r} is no shell line; options go to cluster.sbatch_options"
    if any(not word or "\0" in word for word in c.python):
        yield f"cluster.python={list(c.python)} must be the words of a command"


def _options(c) -> Iterator[str]:
    for name, value in c.sbatch_options.items():
        key = name.replace("_", "-")
        if key in OWN_OPTIONS:
            yield f"cluster.sbatch_options.{name} is set by cluster.{OWN_OPTIONS[key]}"
        elif key in SET_BY_MADS:
            yield f"cluster.sbatch_options.{name} is set by mads submit; leave it out"
        elif not NAME.fullmatch(key):
            yield f"cluster.sbatch_options.{name} is no long option of sbatch, such as qos or gres"
        if value is not None and not isinstance(value, str | int | float):
            yield f"cluster.sbatch_options.{name}={value} must be one value, or true for an option without"
        elif isinstance(value, str) and set(value) & set('\n\r"\\'):
            yield f"cluster.sbatch_options.{name}={value!r} must have no double quote, backslash or end of line"


def _array(c) -> Iterator[str]:
    if len(set(c.array)) < len(c.array):
        yield f"cluster.array={list(c.array)} names a task twice"
    for i, entry in enumerate(c.array):
        try:
            words = task_overrides(entry)
        except ValueError as error:
            yield f"cluster.array[{i}]={entry!r}: {error}"
            continue
        keys = [word.lstrip("+~").split("=", 1)[0] for word in words]
        if not words or "run_dir" in keys or any(key.split(".", 1)[0] == "cluster" for key in keys):
            yield f"cluster.array[{i}]={entry!r} must be overrides of a run, without run_dir, such as train.seed=1"


def task_overrides(entry: str) -> list[str]:
    """The overrides of one task of an array, which are separated by spaces and quoted as in a shell.

    Raises:
        ValueError: a quote is open.
    """
    return shlex.split(entry)


def quoted_value(text: str) -> str:
    """`text` as the value of a Hydra override: Hydra reads escapes of the quote, and of backslashes before one or at the end.

    Raises:
        ConfigError: it has what OmegaConf would take for the name of another key.
    """
    if "${" in text:
        raise ConfigError(f"{text!r} must not have ${{ in it: in a configuration that is a reference to another key")
    text = re.sub(r"(\\*)'", lambda m: m[1] * 2 + "\\'", text)
    text = re.sub(r"\\+$", lambda m: m[0] * 2, text)
    return f"'{text}'"
