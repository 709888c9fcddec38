"""`mads doctor`: every error of a configuration for a cluster, or what it needs there."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf

from mads.config.compose import ConfigError
from mads.config.validate import validate
from mads.data.schema import DataError, Manifest
from mads.doctor.estimate import GIB, Cluster
from mads.doctor.report import findings
from mads.launch.processes import become_single_process, first_process, place, prepare_worker, run_workers
from mads.model.shape import parameter_count

STATE_BYTES = 12  # a parameter in a checkpoint: float32 weight and both moments


def examine(
    config, nodes: int, gpus_per_node: int, gpu_memory_gb: float, host_memory_gb: float, overrides: list[str]
) -> tuple[str, int]:
    """The report and the exit code: 0 fits, 1 does not fit.

    Args:
        config: a composed configuration.
        gpu_memory_gb, host_memory_gb: of one GPU and of one node (0 = not known), in GiB.
        overrides: as given on the command line.

    Raises:
        ConfigError: with all errors, one a line.
    """
    options = {"--nodes": nodes, "--gpus-per-node": gpus_per_node, "--gpu-memory-gb": gpu_memory_gb}
    wrong = [f"{name}={value} must be {'at least 1' if isinstance(value, int) else 'more than 0'}"
             for name, value in options.items() if not value > 0]  # fmt: skip
    if host_memory_gb < 0:
        wrong.append(f"--host-memory-gb={host_memory_gb} must not be negative")
    if wrong:
        raise ConfigError("\n".join(wrong))
    errors, config = [], _without_data(config)
    try:
        validate(config, nodes * gpus_per_node, has_gpu=True, overrides=overrides)
    except ConfigError as error:
        errors.append(str(error))
    data, data_errors = _data(config)
    if errors or data_errors:
        raise ConfigError("\n".join([*errors, *data_errors]))
    cluster = Cluster(nodes, gpus_per_node, int(gpu_memory_gb * GIB), int(host_memory_gb * GIB))
    lines, fits = findings(config, cluster)
    return "\n".join([*data, *lines]), 0 if fits else 1


def preflight_command(config, workers: int | None, wait_s: float, overrides: list[str]) -> int:
    """Try the machines of this job, as a process that a launcher has started, or with `workers` processes on this machine.

    Raises:
        ConfigError: what cannot run on any machine.
    """
    from mads.doctor.preflight import Start, preflight  # torch.distributed takes seconds, and only this needs it

    where = place()
    if where is not None and workers is not None:
        raise ConfigError(f"--workers is not for a launched job: the launcher has started {where.world_size} processes")
    if workers is not None and workers < 1 or wait_s <= 0:
        raise ConfigError(f"--workers={workers} must be at least 1, and --wait={wait_s:g} more than 0")
    config = _without_data(config)
    validate(config, where.world_size if where else workers or 1, torch.cuda.is_available(), overrides)
    if where is None and (workers or 1) > 1:
        return run_workers(workers, [*overrides, "--preflight", f"--wait={wait_s}"], ["mads.cli", "doctor"])
    prepare_worker(torch.cuda.is_available())
    where = where or become_single_process()
    return preflight(
        config.run_dir,
        config.data.dir,
        parameter_count(config.model) * STATE_BYTES,
        Start(where.rank, where.local_rank, where.world_size, *first_process(where)),
        wait_s,
        lambda line: print(line, flush=True),
    )


def _without_data(config):
    """A layout, or a machine, can be examined before there is data."""
    if OmegaConf.is_missing(config.data, "dir"):
        config = config.copy()
        config.data.dir = ""
    return config


def _data(config) -> tuple[list[str], list[str]]:
    """What there is to say of the prepared directory, and what of it does not go with the configuration."""
    directory = config.data.dir
    if not directory or not (Path(directory) / "manifest.json").is_file():
        return [f"data: {directory or 'data.dir'} is not prepared yet; its length and vocabulary were not checked", ""], []
    try:
        manifest = Manifest.read(directory)
    except DataError as error:
        return [], [str(error)]
    errors, held = [], manifest.parts["train"]["tokens"]
    if manifest.seq_length > config.data.seq_length:
        errors.append(
            f"data.seq_length={config.data.seq_length}, but {directory} was prepared with samples of up to {manifest.seq_length} "
            f"tokens; use data.seq_length={manifest.seq_length}"
        )
    if manifest.tokenizer["vocab_size"] > config.model.vocab_size:
        errors.append(
            f"model.vocab_size={config.model.vocab_size}, but the tokenizer of {directory} has "
            f"{manifest.tokenizer['vocab_size']} pieces; use a model with a larger vocabulary"
        )
    step = config.train.global_batch_size * config.data.seq_length
    if step > held:
        errors.append(
            f"train.global_batch_size={config.train.global_batch_size} x data.seq_length={config.data.seq_length} = {step} "
            f"tokens a step, but {directory} has {held}; use a smaller batch, or more data"
        )
    return [f"data: {directory}, {held:,} tokens to train on: {held / step:,.1f} steps without repeating any", ""], errors
