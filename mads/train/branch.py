"""Branches: a new run that goes on from a checkpoint of another one, its trunk, with another schedule or length.

A branch takes over the trunk's whole state (weights, moments, console, agents, ledger, the place in the round, random state), so
one with an unchanged schedule is the trunk, bit for bit at the same layout. Its own checkpoints are those of any run: it resumes
without the trunk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mads import collectives
from mads.checkpoint.canonical import read_state
from mads.checkpoint.manifest import CheckpointError, verify
from mads.config.compose import ConfigError, differences, trajectory
from mads.topology import Topology

# Beside what may differ between two starts of one run.
MAY_DIFFER = ("schedule.", "train.steps", "train.branch_from")


def branch_point(config: DictConfig, topology: Topology) -> Path:
    """The checkpoint under train.branch_from, verified by rank 0. Collective.

    Raises:
        ConfigError: on every rank: it is no checkpoint, damaged, of a run with other settings, or not before train.steps.
    """
    path, error = Path(config.train.branch_from), None
    if topology.rank == 0:
        try:
            _check(config, path)
        except (CheckpointError, ConfigError, OSError, ValueError, KeyError) as caught:  # told to the other ranks, then raised
            error = f"{caught}"
    error = collectives.broadcast_json(error, topology.group("control"))
    if error:
        raise ConfigError(f"train.branch_from={config.train.branch_from}: {error}")
    return path


def _check(config: DictConfig, path: Path) -> None:
    if not (path / "manifest.json").is_file():
        raise ConfigError("there is no checkpoint; give a folder RUN/checkpoints/step-... of another run")
    verify(path)
    state = read_state(path)[0]
    if changed := differences(_common(trajectory(config)), _common(state["trajectory"])):
        raise ConfigError(
            "a branch may differ from its trunk in schedule.* and train.steps only, and this one has other settings:\n  "
            + "\n  ".join(changed)
        )
    if state["step"] >= config.train.steps:
        raise ConfigError(f"it is at step {state['step']}, so train.steps={config.train.steps} leaves nothing to train; raise it")


def _common(flat: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if not key.startswith(MAY_DIFFER)}
