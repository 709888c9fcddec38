"""From documents to a prepared directory (see mads.data.schema for its layout), by any number of processes.

references -> survey -> plan -> sample -> fit -> fit_by_sample -> shards -> seal. Documents are split into train and held-out
before anything learns from them; tokenizer and labellers see training documents only. The same input and settings give the same
bytes, whoever does which task and however often it is interrupted. The manifest is written last, so a directory without one is
unfinished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mads.data.documents import Source
from mads.data.prepare.fit import FILE_NAME
from mads.data.prepare.job import Job
from mads.data.prepare.workers import run_processes, work_through
from mads.data.prepare.workspace import appended_already, begin, existing_manifest, is_complete
from mads.data.references import ReferenceSource
from mads.data.schema import DataError, Manifest
from mads.data.settings import PrepareSettings
from mads.label.base import Labeller


def prepare(
    directory: str | os.PathLike,
    source: Source,
    labellers: dict[str, Labeller],
    references: ReferenceSource | None,
    settings: PrepareSettings,
    attribute_settings: dict[str, Any] | None = None,
    progress: Callable[[str], None] = print,
    workers: int = 1,
    append: bool = False,
) -> Manifest:
    """Prepare a directory, or return its manifest at once if it was prepared with equal settings.

    A call for a directory that another process is preparing with the same settings helps it; one for a directory whose
    preparation was killed goes on with it.

    Args:
        labellers: attribute name -> labeller, not fitted; a document's labels go to all of its samples
        references: None prepares without reference tasks (selections that need rewards will refuse to train on it), and without
            the attributes that are learned from them
        attribute_settings: JSON configuration of the labellers; if it changes, the directory is another one
        progress: receives lines of text
        workers: processes of this machine; with 1 this process does the work itself
        append: add the source's documents to a complete directory, with its tokenizer and its fitted labellers, as further
            shards. Files that are there stay as they are; the manifest is replaced at the end.

    A rest shorter than min_sample_tokens shares its tokens with the window before it (mads.data.parts.window_lengths); a document
    with fewer tokens in all, its end included, is rejected and counted.

    Raises:
        DataError: unusable input or settings, or a directory that was prepared with other settings. Names the remedy.
    """
    directory = Path(directory)
    attributes = attribute_settings or {name: {"class": type(labeller).__name__} for name, labeller in labellers.items()}
    if references is None:
        for name in [name for name, labeller in labellers.items() if getattr(labeller, "learns_references", False)]:
            progress(f"note: there are no reference tasks, so the attribute {name}, which is learned from them, is left out")
            labellers, attributes = ({key: own[key] for key in own if key != name} for own in (labellers, attributes))
    _check(source, labellers, workers)
    _check_groups(source, settings.heldout_group_field, append)
    identity = {
        "settings": settings.identity(),
        "source": source.describe(hashed=False),
        "references": references.describe() if references is not None else None,
        "attributes": attributes,
    }
    identity = json.loads(json.dumps(identity))  # as it will be read back: no tuples, keys are strings
    if append:
        before = Manifest.read_to_change(directory)
        job = Job(directory, source, labellers, references, settings, identity, before)
        if appended_already(job, progress):
            return before
    else:
        manifest = existing_manifest(directory, identity, source, progress)
        if manifest is not None:
            return manifest
        job = Job(directory, source, labellers, references, settings, identity)
    with begin(job, progress):
        if is_complete(job):  # by another process, while this one was starting
            pass
        elif workers == 1:
            work_through(job, progress)
        else:
            run_processes(job, workers, progress)
    return _outcome(job, progress)


def default_workers(source: Source, cores: int) -> int:
    """One process a core, but none for less than 4 MB of files: to start one takes as long as to prepare so much."""
    if not source.files:
        return cores
    return max(1, min(cores, sum(os.path.getsize(path) for _, path in source.files) // 4_000_000))


def _check(source: Source, labellers: dict[str, Labeller], workers: int) -> None:
    if workers < 1:
        raise DataError(f"{workers} workers cannot prepare anything; give --workers 1 or more")
    for name, labeller in labellers.items():
        if not FILE_NAME.fullmatch(name):
            raise DataError(f"attribute name {name!r} is used as a file name; use letters, digits, '_', '-' and '.'")
        missing = sorted(set(labeller.fields) - set(source.attribute_fields))
        if missing:
            raise DataError(
                f"attribute {name!r} is read from the fields {missing}, which the source does not give: add them to "
                f"data.attribute_fields, now {list(source.attribute_fields)}"
            )


def _check_groups(source: Source, field: str | None, append: bool) -> None:
    if field is None:
        return
    if field not in source.attribute_fields:
        raise DataError(
            f"data.heldout_group_field={field!r} is not among the fields that the source gives: add it to data.attribute_fields, "
            f"now {list(source.attribute_fields)}"
        )
    if append:
        raise DataError(
            f"data.heldout_group_field={field!r} cannot be kept when documents are added: a directory does not keep which groups "
            "its documents belong to, so a group could come to lie on both sides. Prepare everything anew, or leave the key out"
        )


def _outcome(job: Job, progress: Callable[[str], None]) -> Manifest:
    if not is_complete(job):
        raise DataError(f"the work folder of {job.directory} was removed while it was prepared; run the command again")
    manifest = Manifest.read(job.directory)
    progress(f"prepared {job.directory}: fingerprint {manifest.fingerprint[:16]}")
    return manifest
