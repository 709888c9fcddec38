"""From overrides on a command line to a validated RunConfig, and back to YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mads.config.store import register


class ConfigError(ValueError):
    """The configuration cannot work. The message names the key, the numbers and the remedy."""


# Fields that take any key: Hydra wants their overrides marked, a user should not have to know.
OPEN_FIELDS = (
    "data.source",
    "data.attributes",
    "data.references",
    "data.reference_paths",
    "data.hygiene.evaluation_paths",
    "agents.members",
    "selection.bounds",
    "selection.shares",
    "selection.theta",
    "parallel.zero_options",
)


# What goes with a selection where nothing else of the kind is chosen.
COMPANIONS = {
    "mads": ("reward", "group"),  # what one-step rewards miss, group probes see: benchmarks/reward_truth.md
    "paper": ("agents", "paper"),  # the published three
}


def _marked(override: str) -> str:
    key = override.split("=", 1)[0]
    return "++" + override if any(key == f or key.startswith(f + ".") for f in OPEN_FIELDS) else override


def _with_companion(overrides: Sequence[str]) -> list[str]:
    """The overrides, with what goes with the selection if they choose none: in front, so that single keys of it still count. An
    experiment chooses for itself."""
    chosen = {key: value for key, _, value in (o.partition("=") for o in overrides)}
    group, name = COMPANIONS.get(chosen.get("selection", "mads"), ("", ""))
    if not group or group in chosen or "experiment" in chosen:
        return list(overrides)
    return [f"{group}={name}", *overrides]


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose conf/ with Hydra overrides. selection=mads, which is the default, brings reward=group if nothing chooses rewards,
    selection=paper the paper's three agents if nothing chooses agents.

    Raises:
        ConfigError: for an unknown key, a wrong type or an unknown choice of a group.
    """
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(config_module="mads.conf", version_base="1.3"):
            config = hydra_compose("config", overrides=[_marked(o) for o in _with_companion(overrides)])
        OmegaConf.resolve(config)
        _check_fields(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_readable(error)) from error
    return config


def _check_fields(config: DictConfig, where: str = "") -> None:
    """Hydra's `+key` and `~key` reach past the typed classes: hold every section to its class's fields again."""
    kind = OmegaConf.get_type(config)
    if dataclasses.is_dataclass(kind):
        fields = {f.name for f in dataclasses.fields(kind)}
        for key in sorted(set(config) ^ fields):
            what = "is not a key of the configuration" if key in config else "was removed"
            raise ConfigError(f"{where}{key} {what}\nAll keys and their values: mads train --cfg job")
    for key in config:
        if not OmegaConf.is_missing(config, key) and OmegaConf.is_dict(config[key]):
            _check_fields(config[key], f"{where}{key}.")


def _readable(error: Exception) -> str:
    # Hydra proposes to append an unknown key with "+"; _check_fields refuses that too, so the hint would mislead.
    text = "\n".join(line for line in str(error).strip().splitlines() if not line.startswith("To append to your config"))
    cause = error.__cause__
    if cause is not None and str(cause).strip() not in text:
        text += "\n" + str(cause).strip()
    return text + "\nAll keys and their values: mads train --cfg job"


def to_yaml(config: DictConfig) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(config)


def to_dict(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dicts, lists and values."""
    return OmegaConf.to_container(config, resolve=True, enum_to_str=True)


# What may differ between two starts of one run: none of it changes which samples are trained on. (Another ZeRO stage,
# micro-batch, number of ranks or train.compile changes the rounding; with all equal, a resumed run is the same bit for bit.)
RUN_INDEPENDENT = (
    "run_dir",
    "train.stop_at",
    "train.micro_batch_size",
    "train.compile",
    "parallel",
    "checkpoint",
    "logging",
    "data",  # which data it is says its fingerprint, wherever it lies and whatever it was made from
    "selection.exchange",  # the ids are the same
    "train.log_interval",
    "train.eval_interval",
    "train.eval_samples",
    "train.eval_attributes",
    "train.invariant_interval",
    "train.prefetch",
    "train.loader_workers",
    "train.verify_data",
    "train.grow_pool",  # RUN/pool.jsonl says what was taken up, and when
)


def trajectory(config: DictConfig) -> dict[str, Any]:
    """The flat keys that determine what a run computes; a checkpoint resumes only under equal ones."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    walk("", to_dict(config))
    independent = [k for k in flat if any(k == p or k.startswith(p + ".") for p in RUN_INDEPENDENT)]
    return {k: v for k, v in sorted(flat.items()) if k not in independent or k == "data.seq_length"}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Readable lines for keys whose values differ between two trajectories."""
    return [
        f"{key}: {theirs.get(key)!r} then, {ours.get(key)!r} now"
        for key in sorted(set(ours) | set(theirs))
        if ours.get(key) != theirs.get(key)
    ]
