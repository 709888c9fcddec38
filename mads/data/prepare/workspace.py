"""The directory of a preparation: complete with its manifest, or unfinished, or not ours."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mads.data.documents import Source
from mads.data.prepare.board import Board, open_board, read_json
from mads.data.prepare.job import Job
from mads.data.prepare.seal import left_over
from mads.data.schema import DataError, Manifest

_SHOWN = 5
_FREE_SETTINGS = ("shard_megabytes", "max_rejected_fraction", "tokenizer_megabytes")  # an addition may have its own
Progress = Callable[[str], None]


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


def _listed(changed: list[str]) -> str:
    more = f", and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return "; ".join(changed[:_SHOWN]) + more


def _without_hashes(identity: dict[str, Any]) -> dict[str, Any]:
    plain = copy.deepcopy(identity)
    for entry in plain["source"].get("files", []):
        entry.pop("sha256", None)
    return plain


def _changes(recorded: dict[str, Any], identity: dict[str, Any], source: Source) -> list[str]:
    """Differences of two identities. The files are only read if everything else, their sizes included, is equal."""
    if changed := differences(_without_hashes(recorded), identity):
        return changed
    return differences(recorded, identity | {"source": json.loads(json.dumps(source.describe()))})


def existing_manifest(directory: Path, identity: dict[str, Any], source: Source, progress: Progress) -> Manifest | None:
    """The manifest of a directory that was prepared with the settings `identity`; None if it is to be prepared (again).

    Raises:
        DataError: the directory was prepared with other settings, or holds files that are not of a preparation.
    """
    path = directory / "manifest.json"
    if not path.exists():
        strangers = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else []
        if strangers and not _is_unfinished(directory):
            raise DataError(
                f"{directory} holds {len(strangers)} files or folders that no preparation wrote "
                f"({', '.join(strangers[:_SHOWN])}); choose another data.dir"
            )
        return None
    try:
        generations = json.loads(path.read_text())["generations"]
        recorded = generations[0]["source"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is not a manifest of mads ({error!r}); choose another data.dir or remove {directory}") from error
    if changed := _changes(recorded, identity, source):
        raise DataError(
            f"{directory} was prepared with other settings: {_listed(changed)}. "
            f"Choose another data.dir, or remove {directory} to prepare it anew"
        )
    try:
        manifest = Manifest.read(directory)
    except DataError as error:
        if len(generations) > 1:  # what was added later would be lost
            raise
        progress(f"{error}. Doing so now")
        path.unlink(missing_ok=True)
        (directory / "work").mkdir(exist_ok=True)  # marks it as ours
        return None
    if (directory / "work").is_dir() and _generation(directory) < len(generations):
        Board(directory).close()  # left by a process that was killed as its last act
    summary = f"{_summary(manifest)}; fingerprint {manifest.fingerprint[:16]}"
    progress(f"{directory} is prepared already with these settings: {summary}")
    return manifest


def _generation(directory: Path) -> int:
    """Which generation the work folder is about; that of an addition stays until the addition goes on."""
    recorded = read_json(directory / "work" / "job.json")
    return recorded["generation"] if recorded else 0


def is_complete(job: Job) -> bool:
    """Whether the manifest has the job's generation."""
    value = read_json(job.directory / "manifest.json")
    return value is not None and len(value["generations"]) > job.generation


def _is_unfinished(directory: Path) -> bool:
    """Whether a preparation has begun here: its work folder is the first that it makes."""
    work = directory / "work"
    return work.is_dir() and ((work / "job.json").exists() or not any(p.is_file() for p in work.rglob("*")))


def _summary(manifest: Manifest) -> str:
    units = ("documents", "samples", "tokens")
    return "; ".join(f"{part} " + ", ".join(f"{counts[u]:,} {u}" for u in units) for part, counts in manifest.parts.items())


def appended_already(job: Job, progress: Progress) -> bool:
    """Whether the source's documents are in the directory, that is, whether this very addition was completed before.

    Raises:
        DataError: settings, references or attributes that are not those of the directory.
    """
    first = job.before.generations[0]["source"]
    sides = [{k: v for k, v in side["settings"].items() if k not in _FREE_SETTINGS} for side in (first, job.identity)]
    changed = differences(
        {"settings": sides[0], "references": first["references"]},
        {"settings": sides[1], "references": job.identity["references"]},
    )
    names = sorted(job.labellers), sorted(a.name for a in job.before.attributes)
    if names[0] != names[1]:
        changed.append(f"attributes: {', '.join(names[1])} there, {', '.join(names[0])} asked for")
    if changed:
        raise DataError(
            f"documents can be added to {job.directory} with its own settings only: {_listed(changed)}. "
            "Use those, or prepare another directory"
        )
    for number, generation in enumerate(job.before.generations):
        recorded = {"source": generation["source"]["source"]}
        if not _changes(recorded, {"source": job.identity["source"]}, job.source):
            progress(f"{job.directory} has these documents already, as generation {number}: {_summary(job.before)}")
            return True
    return False


@contextmanager
def begin(job: Job, progress: Progress) -> Iterator[None]:
    """Open the work folder for a preparation, to go on with it or to join it.

    Raises:
        DataError: another process is preparing the directory with other settings.
    """
    board = Board(job.directory)
    recorded = open_board(job.directory, job.record)
    if is_complete(job):
        board.close()
        yield
        return
    if changed := differences(recorded, job.record):
        if recorded["generation"] >= job.generation and (busy := board.others()):
            raise DataError(
                f"another process is preparing {job.directory} with other settings ({_listed(changed)}; it is at {busy[0]}). "
                f"Wait for it, or choose another data.dir; if there is no such process, remove {job.directory / 'work'}"
            )
        _clear(job, progress)
        open_board(job.directory, job.record)
    elif (done := len(board.done())) and not board.others():
        progress(f"going on with the unfinished preparation in {job.directory}: {done} tasks are done")
    with board.present():
        yield


def _clear(job: Job, progress: Progress) -> None:
    """Remove what a preparation with other settings left unfinished, and nothing else."""
    left = left_over(job)
    for path in left:
        path.unlink()
    shutil.rmtree(job.work)
    progress(f"removed {len(left)} files of an unfinished preparation with other settings in {job.directory}")
