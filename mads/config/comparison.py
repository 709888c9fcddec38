"""A comparison's own configuration (conf/compare), and the Hydra sweep that its cells are the jobs of."""

from __future__ import annotations

import dataclasses
import importlib.resources
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from hydra import compose as hydra_compose
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mads.config.compose import ConfigError, _check_fields, _readable


@dataclass
class ComparisonConfig:
    """Strategies x seeds at equal tokens. Every list of overrides is one of `mads train`."""

    strategies: dict[str, list[str]] = field(default_factory=dict)  # name -> overrides; like=NAME first: those of NAME before
    seeds: list[int] = field(default_factory=lambda: [0])  # train.seed: initialisation, packing and noise are shared by a seed
    overrides: list[str] = field(default_factory=list)  # of every run
    cooldown: float = 0.2  # share of its own steps that a branch decays over; 0 = the runs keep their own schedule, no branches
    branches: list[float] = field(default_factory=list)  # shares of train.steps at which a cooled branch ends, beside the end
    branched: Optional[list[str]] = None  # strategies that get these branches; None = all. All are cooled at the end
    control: str = "random"
    treatment: Optional[str] = None  # the strategy whose claim is tested
    primary: Optional[str] = None  # its main opponent, chosen beforehand; the others are Holm-corrected
    evaluation: dict[str, str] = field(default_factory=dict)  # task -> JSONL, none of them a reference
    apart: list[str] = field(default_factory=list)  # tasks that are shown, but not part of the mean
    # Attribute -> labels of destroyed text, for reporting only; the default counts where the data has such an attribute.
    destroyed: dict[str, list[str]] = field(default_factory=lambda: {"destroyed": ["yes"]})


@dataclass
class CellJobConfig:
    """One job of the sweep."""

    plan: str = MISSING  # the folder's plan.json
    cell: str = MISSING  # STRATEGY-SEED


SCHEMA, JOB = "comparison_schema", "comparison_job"
BUNDLED = Path(str(importlib.resources.files("mads.conf"))) / "compare"
KEYS = tuple(f.name for f in dataclasses.fields(ComparisonConfig))
LAUNCHERS = {"joblib": "hydra_plugins.hydra_joblib_launcher", "submitit": "hydra_plugins.hydra_submitit_launcher"}


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """(the comparison's own, those of every run, those of the sweep, as hydra/launcher=joblib)."""
    own, runs, sweep = [], [], []
    for override in overrides:
        root = override.lstrip("+~").split("=", 1)[0].split(".", 1)[0]
        kind = own if root in KEYS else sweep if root.split("/", 1)[0] == "hydra" else runs
        kind.append(override)
    return own, runs, sweep


def compose_comparison(choice: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A ComparisonConfig.

    Args:
        choice: the name of a file of conf/compare, or the path of a .yaml file that begins with
            `defaults: [comparison_schema, _self_]`.
        overrides: the comparison's own (`split_overrides`).

    Raises:
        ConfigError: no such file, an unknown key, a wrong type.
    """
    path = Path(choice) if choice.endswith((".yaml", ".yml")) else BUNDLED / f"{choice}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.yaml")))
        raise ConfigError(f"compare={choice}: there is no {path.name}; choose one of {known}, or give the path of a .yaml file")
    ConfigStore.instance().store(name=SCHEMA, node=ComparisonConfig, provider="mads")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(path.resolve().parent), version_base="1.3"):
            config = hydra_compose(path.name, overrides=[_marked(o) for o in overrides])
        if OmegaConf.get_type(config) is not ComparisonConfig:
            raise ConfigError(f"{path} must begin with `defaults: [{SCHEMA}, _self_]`, so that its keys are checked")
        OmegaConf.resolve(config)
        _check_fields(config)
    except ConfigError as error:
        raise ConfigError(f"compare={choice}: {_own_hint(str(error))}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"compare={choice}: {_own_hint(_readable(error))}") from error
    return config


def _own_hint(text: str) -> str:
    return text.replace("mads train --cfg job", "mads compare --cfg job compare=NAME")


def _marked(override: str) -> str:
    """strategies, evaluation and destroyed take any key: Hydra wants their overrides marked."""
    return "++" + override if override.split(".", 1)[0] in ("strategies", "evaluation", "destroyed") else override


def launcher_overrides(jobs: int, sweep: Sequence[str]) -> list[str]:
    """The sweep's launcher: the one that `sweep` names, else joblib for several jobs, else Hydra's own, one after the other.

    Raises:
        ConfigError: if its package is not installed, or `jobs` does not fit it.
    """
    chosen = [o.split("=", 1)[1] for o in sweep if o.startswith("hydra/launcher=")]
    if chosen and jobs > 1 and chosen[-1] != "joblib":
        raise ConfigError(f"--jobs {jobs} is for hydra/launcher=joblib; {chosen[-1]} has keys of its own below hydra.launcher")
    extra = [] if chosen else ["hydra/launcher=joblib"] if jobs > 1 else []
    name = chosen[-1] if chosen else "joblib" if jobs > 1 else "basic"
    module = next((m for start, m in LAUNCHERS.items() if name.startswith(start)), None)
    if module is not None and (importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(module) is None):
        raise ConfigError(f"hydra/launcher={name} is not installed: pip install 'mads[compare]'")
    return [*extra, *([f"hydra.launcher.n_jobs={jobs}"] if name == "joblib" else []), *sweep]


def sweep(task: Callable[[Any], Any], plan: Path, cells: Sequence[str], folder: Path, overrides: Sequence[str]) -> None:
    """Run `task` once for each cell as the jobs of one Hydra multirun, on the launcher that `overrides` choose.

    Args:
        task: gets a CellJobConfig; a function of a module, because launchers send it to other processes.
        folder: where Hydra keeps what it writes about the sweep.

    Raises:
        ConfigError: the launcher does not exist, or refuses its keys.
    """
    ConfigStore.instance().store(name=JOB, node=CellJobConfig, provider="mads")
    GlobalHydra.instance().clear()
    arguments = [
        f"plan='{plan}'",
        f"cell={','.join(cells)}",
        "hydra.mode=MULTIRUN",
        f"hydra.sweep.dir='{folder}'",
        "hydra.sweep.subdir=${cell}",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        *overrides,
    ]
    logging.getLogger("hydra").setLevel(logging.WARNING)
    try:
        with initialize_config_module(config_module="mads.conf", version_base="1.3", job_name="compare"):
            GlobalHydra.instance().hydra.multirun(JOB, task, arguments)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the sweep cannot start: {_readable(error)}") from error
