"""A checkpoint folder on disk: complete or not there at all.

    checkpoints/
      latest                      name of the newest complete checkpoint; only ever replaced
      step-00000100/
        manifest.json             written last: size and SHA-256 of every other file, and a SHA-256 of its own content
        state.json                step, tokens, console, agents, loader position, topology, configuration digest
        weight-RANK-N.safetensors fp32 master weights by logical parameter name, whole and without padding, from the rank that
                                  wrote them; likewise exp_avg-*, exp_avg_sq-*
        NAME.npy                  pending ids, RNG states
        ledger.bin                use counts of the pool's samples
      step-00000200.damaged/      set aside by a resume that passed it over (mads.checkpoint.finding); never read
A checkpoint is written to a temporary name, flushed to disk and published by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mads.data.schema import sha256_of
from mads.paths import UnsafeNameError, inside, is_plain

FORMAT_VERSION = 1
_STEP = re.compile(r"step-(\d{8,})")


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or of another run. The message names the file and what can be used instead."""


class FormatError(CheckpointError):
    """A whole checkpoint that another version of mads wrote: not damaged, and not to be passed over."""


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest `last`, those of `steps`, and those at multiples of `every` (0: none)."""

    last: int
    steps: Collection[int] = ()
    every: int = 0

    def holds(self, step: int) -> bool:
        """Whether this one stays however many newer ones there are."""
        return step in self.steps or bool(self.every and step % self.every == 0)


def name_of(step: int) -> str:
    """Folder name of the checkpoint of a step."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step of a checkpoint's folder; None for another name, such as that of one set aside."""
    found = _STEP.fullmatch(path.name)
    return int(found[1]) if found else None


def flush(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritten(error: OSError, path: Path, size: int) -> OSError:
    """The error of writing, which knows of no file, with the path and how many bytes it had taken."""
    taken = f" after {size:,} bytes" if size else ""
    return OSError(error.errno, f"{error.strerror}{taken}", os.fspath(path))


def write_text(path: Path, text: str) -> None:
    """Write a small file. Raises: OSError that names it, on a full disk too."""
    try:
        path.write_text(text)
    except OSError as error:
        raise unwritten(error, path, 0) from error


def write_json(path: Path, value) -> None:
    """Write a JSON value; NaN and infinity, which JSON lacks, are a ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False))  # in the given order: that of the agents matters


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
    content = {"format_version": FORMAT_VERSION, "step": step, "files": dict(sorted(files.items()))}
    write_json(temporary / "manifest.json", content | {"sha256": _digest(content)})
    flush(temporary / "manifest.json")
    flush(temporary)
    target = root / name_of(step)
    replaced = root / f".saving-replaced-{step:08d}"  # removed by `prune` if this process is killed before it does so itself
    if target.exists():  # moved away whole: a folder that is half removed would look like a damaged checkpoint
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(target, replaced)
    os.replace(temporary, target)
    point(root, target.name)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def point(root: Path, name: str) -> None:
    """Have `latest` name a checkpoint; on disk when this returns, and the renames before it."""
    pointer = root / "latest.tmp"
    write_text(pointer, name + "\n")
    flush(pointer)
    os.replace(pointer, root / "latest")
    flush(root)


def _digest(content: dict) -> str:
    """SHA-256 of a manifest without its own."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
        content = {key: value for key, value in manifest.items() if key != "sha256"}
        # Early manifests had no hash of their own; a damaged key is none of theirs.
        own = manifest["sha256"] if set(content) != {"format_version", "step", "files"} or "sha256" in manifest else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{manifest_path} is damaged ({type(error).__name__}: {error})") from error
    if own is not None and own != _digest(content):
        raise CheckpointError(f"{manifest_path} is damaged: its content is not that of its SHA-256")
    if version != FORMAT_VERSION:
        raise FormatError(f"{manifest_path} has format {version}; this mads reads {FORMAT_VERSION}")
    for name, (size, sha256) in files.items():
        file = member(path, name)
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        held = file.stat().st_size
        if held != size:
            raise CheckpointError(f"{file} is damaged: it has {held:,} bytes, the manifest says {size:,}")
        if sha256_of(file) != sha256:
            raise CheckpointError(f"{file} is damaged: its SHA-256 is not the manifest's")
    return manifest


def checkpoints(root: Path) -> list[Path]:
    """Folders of checkpoints, newest first, whole or not."""
    return sorted((p for p in root.glob("step-*") if step_of(p) is not None and p.is_dir()), key=step_of, reverse=True)


def prune(root: Path, keep: Keep) -> None:
    """Remove all checkpoints but those to keep, and what crashed saves left behind."""
    for path in checkpoints(root)[max(1, keep.last) :]:
        if not keep.holds(step_of(path)):
            removed = root / f".saving-removed-{path.name}"  # whole first: a folder half removed would look damaged
            shutil.rmtree(removed, ignore_errors=True)
            os.replace(path, removed)
    for path in root.glob(".saving-*"):
        shutil.rmtree(path)
