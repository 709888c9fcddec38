"""A checkpoint folder on disk: complete or not there at all.

    checkpoints/
      latest                      name of the newest complete checkpoint; only ever replaced
      step-00000100/
        manifest.json             written last: size and SHA-256 of every other file
        state.json                step, tokens, console, agents, loader position, topology, configuration digest
        weight-RANK-N.safetensors fp32 master weights by logical parameter name, whole and without padding, from the rank that
                                  wrote them; likewise exp_avg-*, exp_avg_sq-*
        NAME.npy                  pending ids, RNG states
        ledger.bin                use counts of the pool's samples
A checkpoint is written to a temporary name, flushed to disk and published by one rename.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from mads.data.schema import sha256_of
from mads.paths import UnsafeNameError, inside, is_plain

FORMAT_VERSION = 1
_STEP = re.compile(r"step-\d{8,}")


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or of another run. The message names the file and what can be used instead."""


def name_of(step: int) -> str:
    """Folder name of the checkpoint of a step."""
    return f"step-{step:08d}"


def flush(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value) -> None:
    """Write a JSON value; NaN and infinity, which JSON lacks, are a ValueError."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False))  # in the given order: that of the agents matters


def recorded(file: Path) -> dict:
    """Size and SHA-256 of a file, which is on disk when this returns."""
    flush(file)
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def publish(root: Path, temporary: Path, step: int, files: dict[str, dict] | None = None) -> Path:
    """Write the manifest of a finished temporary folder, move it to its name, and point `latest` at it.

    Args:
        files: name -> `recorded`, by those who wrote them; None: all that are there, read again.
    """
    if files is None:
        files = {file.name: recorded(file) for file in temporary.iterdir()}
    files = dict(sorted(files.items()))
    write_json(temporary / "manifest.json", {"format_version": FORMAT_VERSION, "step": step, "files": files})
    flush(temporary / "manifest.json")
    flush(temporary)
    target = root / name_of(step)
    replaced = root / f".saving-replaced-{step:08d}"  # removed by `prune` if this process is killed before it does so itself
    if target.exists():  # moved away whole: a folder that is half removed would look like a damaged checkpoint
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(target, replaced)
    os.replace(temporary, target)
    pointer = root / "latest.tmp"
    pointer.write_text(target.name + "\n")
    flush(pointer)
    os.replace(pointer, root / "latest")
    flush(root)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def member(path: Path, name: str) -> Path:
    """Path of a checkpoint's file by its name in the manifest.

    Raises:
        CheckpointError: it is no plain file inside of the checkpoint's folder.
    """
    if not is_plain(name):
        raise CheckpointError(f"{path / 'manifest.json'} names a file outside of its folder: {name!r}")
    try:
        return inside(path, name)
    except UnsafeNameError as error:
        raise CheckpointError(f"{error}: {path.name} is not read") from error


def verify(path: Path) -> dict:
    """The manifest of a checkpoint whose every file is there and unchanged.

    Raises:
        CheckpointError: naming the first file that is missing or damaged, is no plain file, or lies outside of the folder.
    """
    manifest_path = member(path, "manifest.json")
    if not manifest_path.is_file():
        raise CheckpointError(f"{manifest_path} is missing")
    try:
        manifest = json.loads(manifest_path.read_text())
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        version = manifest["format_version"]
        if not all(isinstance(size, int) and isinstance(sha256, str) for size, sha256 in files.values()):
            raise ValueError("a size or a hash is of another type")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{manifest_path} is damaged ({error})") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{manifest_path} has format {version}; this mads reads {FORMAT_VERSION}")
    for name, (size, sha256) in files.items():
        file = member(path, name)
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if file.stat().st_size != size or sha256_of(file) != sha256:
            raise CheckpointError(f"{file} is damaged: size or SHA-256 differ from the manifest's")
    return manifest


def complete_checkpoints(root: Path) -> list[Path]:
    """Folders with a manifest, newest first (not verified)."""
    return sorted((p for p in root.glob("step-*") if _STEP.fullmatch(p.name) and (p / "manifest.json").is_file()), reverse=True)


def find_latest(root: Path) -> Path | None:
    """The verified checkpoint that `latest` names, or a complete one that is newer; None if the run has none.

    Raises:
        CheckpointError: if it is damaged; the newest complete checkpoint before it is offered, not silently taken.
    """
    pointer, found = root / "latest", complete_checkpoints(root)
    path = root / Path(pointer.read_text().strip()).name if pointer.is_file() else None
    if path is None or not _STEP.fullmatch(path.name) or not path.is_dir() or (found and found[0].name > path.name):
        # Killed between the two renames (the folder is complete, the pointer is not), or the user removed a damaged folder.
        if not found:
            return None
        path = found[0]
    try:
        verify(path)
    except CheckpointError as error:
        for candidate in complete_checkpoints(root):
            if candidate.name < path.name:
                try:
                    verify(candidate)
                except CheckpointError:
                    continue
                raise CheckpointError(
                    f"{error}; remove {path} to resume from {candidate.name}, the newest complete one before it"
                ) from error
        raise CheckpointError(f"{error}; there is no complete checkpoint before it, remove {path} to start again") from error
    return path


def prune(root: Path, keep_last: int, keep_steps: Collection[int] = ()) -> None:
    """Remove all but the newest `keep_last` checkpoints and those of `keep_steps`, and what crashed saves left behind."""
    keep = {name_of(step) for step in keep_steps}
    for path in complete_checkpoints(root)[max(1, keep_last) :]:
        if path.name not in keep:
            shutil.rmtree(path)
    for path in root.glob(".saving-*"):
        shutil.rmtree(path)
