"""Save and load in the canonical form: fp32 master weights and both Adam moments by logical parameter name, whatever the ZeRO
stage and the number of ranks. A checkpoint therefore loads at another stage or data-parallel size."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mads import collectives
from mads.checkpoint.manifest import CheckpointError, name_of, prune, publish, verify, write_json

KEYS = ("weight", "exp_avg", "exp_avg_sq")


class _ChunkWriter:
    """Collects tensors on rank 0 and writes a file whenever `max_bytes` are together, so that memory stays bounded."""

    def __init__(self, folder: Path, key: str, max_bytes: int):
        self._folder, self._key, self._max = folder, key, max_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self._files = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        tensor = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        if self._pending and self._bytes + tensor.nbytes > self._max:
            self.write()
        self._pending[name] = tensor
        self._bytes += tensor.nbytes

    def write(self) -> None:
        if self._pending:
            save_file(self._pending, self._folder / f"{self._key}-{self._files:05d}.safetensors")
            self._files += 1
            self._pending, self._bytes = {}, 0


def _agree(error: str | None, control, what: str) -> None:
    """Raise on every rank if it failed on any, so that nobody waits for a rank that has given up."""
    outcomes = collectives.all_gather_json(error, control)
    failed = {rank: e for rank, e in enumerate(outcomes) if e}
    if failed:
        raise CheckpointError(f"{what} failed: " + "; ".join(f"rank {rank}: {e}" for rank, e in failed.items()))


def save(
    root: Path,
    step: int,
    engine,
    topology,
    state: dict[str, Any],
    arrays: dict[str, np.ndarray],
    files: dict[str, Callable[[Path], None]],
    keep_last: int,
    max_file_bytes: int,
) -> Path:
    """Write checkpoint `step` below `root`. Collective; returns its folder.

    Args:
        engine: has `parameters` (name, parameter) and `state` (mads.train.optimizer_state).
        state: JSON values; arrays: NumPy arrays; both from rank 0.
        files: name -> a function that writes that file, called on all ranks together: rank 0 writes what the others send it. It
            must not raise before they have sent everything.

    Raises:
        CheckpointError: on all ranks if any failed (disk full, ...); earlier checkpoints are untouched.
    """
    control = topology.group("control")
    rng = collectives.ragged_all_gather(torch.get_rng_state().numpy()[None], control)
    steps = engine.state.steps
    writes = topology.rank == 0
    temporary = root / f".saving-{step:08d}"
    error = None
    if writes:
        try:
            root.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        except OSError as e:
            error = str(e)
    _agree(error, control, f"saving checkpoint {step}")
    for key in KEYS:
        chunks = _ChunkWriter(temporary, key, max_file_bytes)
        for name, parameter in engine.parameters:  # every rank takes part in gathering, whatever rank 0's disk says
            tensor = engine.state.full(parameter, key)
            if writes and error is None:
                error = _attempt(chunks.add, name, tensor)
        if writes and error is None:
            error = _attempt(chunks.write)
    for name, write in files.items():
        failure = _attempt(write, temporary / name)
        error = error or failure
    if writes and error is None:
        error = _attempt(_write_small, temporary, state | {"optimizer_steps": steps}, arrays | {"rng": np.concatenate(rng)})
    if writes and error is None:
        error = _attempt(lambda: (publish(root, temporary, step), prune(root, keep_last)))
    if writes and error is not None:
        shutil.rmtree(temporary, ignore_errors=True)  # on a full disk the rest would be in the way of everything else
    _agree(error, control, f"saving checkpoint {step}")
    return root / name_of(step)


def _attempt(action, *arguments) -> str | None:
    try:
        action(*arguments)
    except Exception as error:  # reported to all ranks by _agree
        return f"{type(error).__name__}: {error}"
    return None


def _write_small(folder: Path, state: dict, arrays: dict[str, np.ndarray]) -> None:
    write_json(folder / "state.json", state)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """state.json and the arrays of a checkpoint whose files have been verified."""
    state = json.loads((path / "state.json").read_text())
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


def _listed(path: Path, ending: str, start: str = "") -> list[Path]:
    """Files that the manifest vouches for; anything else in the folder is not read."""
    names = json.loads((path / "manifest.json").read_text())["files"]
    return [path / name for name in sorted(names) if name.startswith(start) and name.endswith(ending)]


def load(path: Path, engine, topology, verified: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Load weights and moments into the engine; returns (state, arrays). Every rank reads the shared folder.

    Args:
        verified: the hashes were checked just now (by `find_latest`); reading a large checkpoint twice takes minutes.

    Raises:
        CheckpointError: on all ranks, if a file is damaged or a parameter is missing, unknown or of another shape.
    """
    control = topology.group("control")
    error = _attempt(verify, path) if topology.rank == 0 and not verified else None
    _agree(error, control, f"loading {path.name}")
    error, index = None, {}
    try:
        index = {key: _index(path, key) for key in KEYS}
        for key in KEYS:
            _check_names(index[key], engine, key)
    except (OSError, CheckpointError) as e:
        error = str(e)
    _agree(error, control, f"loading {path.name}")
    state, arrays = read_state(path)
    engine.state.prepare_load(state["optimizer_steps"])
    for key in KEYS:
        if key != "weight" and state["optimizer_steps"] == 0:
            continue
        for name, parameter in engine.parameters:
            with safe_open(index[key][name][0], framework="pt") as f:
                value = f.get_tensor(name)
            engine.state.load(parameter, key, value.to(engine.device))
    engine.state.publish()
    if arrays["rng"].shape[0] == topology.world_size:
        torch.set_rng_state(torch.from_numpy(arrays["rng"][topology.rank].copy()))
    return state, arrays


def _index(path: Path, key: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """parameter name -> (file, shape)."""
    result = {}
    for file in _listed(path, ".safetensors", start=f"{key}-"):
        with safe_open(os.fspath(file), framework="pt") as f:
            for name in f.keys():
                result[name] = (os.fspath(file), tuple(f.get_slice(name).get_shape()))
    return result


def _check_names(index: dict, engine, key: str) -> None:
    expected = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.parameters}
    missing, unknown = sorted(set(expected) - set(index)), sorted(set(index) - set(expected))
    if missing or unknown:
        raise CheckpointError(f"{key}: the checkpoint lacks {missing[:3]} and has unknown {unknown[:3]}; it is of another model")
    for name, shape in expected.items():
        if index[name][1] != shape:
            raise CheckpointError(
                f"{key}/{name} has shape {index[name][1]} in the checkpoint and {shape} in the model; it is of another model"
            )
