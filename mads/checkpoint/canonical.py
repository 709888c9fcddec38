"""Read checkpoints in the canonical form: fp32 master weights and both Adam moments by logical parameter name, each whole and
without padding, whatever the grid and the ZeRO stage of the run that saved it. They load at any other grid and stage.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from mads import collectives
from mads.checkpoint.manifest import CheckpointError, member, verify
from mads.checkpoint.saver import raise_together
from mads.checkpoint.streamed import Stored, stored_tensors
from mads.checkpoint.tensors import KEYS, local_shape, logical_shapes, read_piece
from mads.checkpoint.writing import attempt
from mads.layout import layout_of


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """state.json and the arrays of a checkpoint whose files have been verified.

    Raises:
        CheckpointError: the manifest does not vouch for state.json.
    """
    state = json.loads(vouched(path, "state.json").read_text())
    arrays = {f.stem: np.load(f, allow_pickle=False) for f in _listed(path, ".npy")}
    return state, arrays


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """fp32 weights by parameter name, for one process that does not train.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    verify(path)
    weights = {}
    for file in _listed(path, ".safetensors", start="weight-"):
        with safe_open(os.fspath(file), framework="pt") as f:
            weights |= {name: f.get_tensor(name) for name in f.keys()}
    return weights


def weight_index(path: Path) -> dict[str, Stored]:
    """Parameter name -> where its fp32 weight is. The files are not verified here.

    Raises:
        CheckpointError: a name is in two files.
    """
    found: dict[str, Stored] = {}
    for file in _listed(path, ".safetensors", start="weight-"):
        for tensor in stored_tensors(file):
            if tensor.name in found:
                raise CheckpointError(f"weight/{tensor.name} is in {found[tensor.name].file.name} and in {file.name}")
            found[tensor.name] = tensor
    return found


def vouched(path: Path, name: str) -> Path:
    """Where a checkpoint's file is.

    Raises:
        CheckpointError: the manifest, whose hashes are all that was verified, does not name it.
    """
    if name not in _names(path):
        raise CheckpointError(f"{path / 'manifest.json'} does not name {name}, so nothing vouches for it; use another checkpoint")
    return member(path, name)


def _listed(path: Path, ending: str, start: str = "") -> list[Path]:
    """Files that the manifest vouches for; anything else in the folder is not read."""
    return [member(path, name) for name in sorted(_names(path)) if name.startswith(start) and name.endswith(ending)]


def _names(path: Path) -> list[str]:
    return list(json.loads((path / "manifest.json").read_text())["files"])


def load(path: Path, engine, topology, verified: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Load weights and moments into the engine; returns (state, arrays). Collective; every rank reads its own shards from the
    shared folder, one tensor at a time. The random state is restored if the grid is that of the save.

    Args:
        verified: the hashes were checked just now (by `find_latest`); reading a large checkpoint twice takes minutes.

    Raises:
        CheckpointError: on all ranks, if a file is damaged or a parameter is missing, unknown or of another shape.
    """
    control = topology.group("control")
    error, index = None, {}
    if topology.rank == 0:  # one rank opens all files, the others those that they need
        error = None if verified else attempt(verify, path)
        error = error or attempt(lambda: index.update({key: _index(path, key) for key in KEYS}))
    raise_together(error, control, f"loading {path.name}")
    index = collectives.broadcast_json(index, control)
    shapes = logical_shapes(engine)
    error = attempt(lambda: [_check_names(index[key], shapes, key) for key in KEYS])
    raise_together(error, control, f"loading {path.name}")
    state, arrays = read_state(path)
    engine.state.prepare_load(state["optimizer_steps"])
    place, count = topology.coordinate("tp"), topology.size("tp")
    for key in KEYS:
        if key != "weight" and state["optimizer_steps"] == 0:
            continue
        for name, parameter in engine.parameters:  # copies of tied weights too
            with safe_open(os.fspath(path / index[key][name][0]), framework="pt") as f:
                value = read_piece(f.get_slice(name), layout_of(parameter), local_shape(parameter), place, count)
            engine.state.load(parameter, key, value.to(engine.device))
    engine.state.publish()
    if state.get("topology") == str(topology.grid):
        torch.set_rng_state(torch.from_numpy(arrays["rng"][topology.rank].copy()))
    return state, arrays


def _index(path: Path, key: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Parameter name -> (file name, shape)."""
    result = {}
    for file in _listed(path, ".safetensors", start=f"{key}-"):
        with safe_open(os.fspath(file), framework="pt") as f:
            for name in f.keys():
                if name in result:
                    raise CheckpointError(f"{key}/{name} is in {result[name][0]} and in {file.name}")
                result[name] = (file.name, tuple(f.get_slice(name).get_shape()))
    return result


def _check_names(index: dict, expected: dict[str, tuple[int, ...]], key: str) -> None:
    missing, unknown = sorted(set(expected) - set(index)), sorted(set(index) - set(expected))
    if missing or unknown:
        raise CheckpointError(f"{key}: the checkpoint lacks {missing[:3]} and has unknown {unknown[:3]}; it is of another model")
    for name, shape in expected.items():
        saved = tuple(index[name][1])
        if saved != shape:
            raise CheckpointError(
                f"{key}/{name} has shape {saved} in the checkpoint and {shape} in the model; it is of another model"
            )
