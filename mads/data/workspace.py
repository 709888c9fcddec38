"""The directory of a preparation: complete with its manifest, or claimed and unfinished, or not ours."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mads.data.parts import written_files
from mads.data.schema import DataError, Manifest

CLAIM = "preparing"  # an empty file, there from the first to the last moment of a preparation; known files beside it may go
_SHOWN = 5


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists as {"a.b.0": leaf}."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if children is None:
        return {prefix: value}
    out = {}
    for key, child in children:
        out |= flatten(child, f"{prefix}.{key}" if prefix else str(key))
    return out


def differences(existing: Any, asked: Any) -> list[str]:
    """One line for every leaf in which two JSON values differ."""
    old, new = flatten(existing), flatten(asked)
    show = lambda side, key: json.dumps(side[key]) if key in side else "nothing"  # noqa: E731
    changed = [k for k in sorted(old.keys() | new.keys()) if show(old, k) != show(new, k)]
    return [f"{k}: {show(old, k)} there, {show(new, k)} asked for" for k in changed]


def existing_manifest(directory: Path, identity: dict[str, Any], progress: Callable[[str], None]) -> Manifest | None:
    """The manifest of a directory that was prepared with the settings `identity`; None if it is to be prepared (again).

    Raises:
        DataError: the directory was prepared with other settings, or holds files that are not of a preparation.
    """
    path = directory / "manifest.json"
    if not path.exists():
        if directory.is_dir() and not (directory / CLAIM).exists() and (strangers := sorted(p.name for p in directory.iterdir())):
            raise DataError(
                f"{directory} holds {len(strangers)} files or folders that no preparation wrote "
                f"({', '.join(strangers[:_SHOWN])}); choose another data.dir"
            )
        return None
    try:
        recorded = json.loads(path.read_text())["generations"][0]["source"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is not a manifest of mads ({error!r}); choose another data.dir or remove {directory}") from error
    if changed := differences(recorded, identity):
        more = f", and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise DataError(
            f"{directory} was prepared with other settings: {'; '.join(changed[:_SHOWN])}{more}. "
            f"Choose another data.dir, or remove {directory} to prepare it anew"
        )
    try:
        manifest = Manifest.read(directory)
    except DataError as error:
        progress(f"{error}. Doing so now")
        return None
    summary = f"{_summary(manifest)}; fingerprint {manifest.fingerprint[:16]}"
    progress(f"{directory} is prepared already with these settings: {summary}")
    return manifest


def _summary(manifest: Manifest) -> str:
    units = ("documents", "samples", "tokens")
    return "; ".join(f"{part} " + ", ".join(f"{counts[u]:,} {u}" for u in units) for part, counts in manifest.parts.items())


@contextmanager
def claimed(directory: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold the directory for one preparation: what an unfinished one left is removed, and nothing else.

    Raises:
        DataError: if another process is preparing the same directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    claim = directory / CLAIM
    with open(claim, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another process is preparing {directory}; wait for it, or choose another data.dir") from error
        if not claim.exists():  # the other process ended between opening the file and locking it
            raise DataError(f"another process has just prepared {directory}; run the command again to use it")
        manifests = [directory / "manifest.json", directory / "manifest.json.tmp"]
        leftovers = [*written_files(directory), *(p for p in manifests if p.exists())]
        for path in leftovers:
            path.unlink()
        if leftovers:
            progress(f"removed {len(leftovers)} files of an unfinished or damaged preparation in {directory}")
        yield
        claim.unlink()
