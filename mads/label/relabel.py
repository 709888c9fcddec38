"""Attributes of a prepared directory, added, replaced or removed without touching its tokens.

New columns are written beside the old ones, under the attribute's next revision; then the manifest is replaced by one rename, and
then the old columns go. Whenever a run ends, the directory is the old one or the new one, and whole.
"""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mads.data.attributes import write_column
from mads.data.documents import Document
from mads.data.pool import attribute_path
from mads.data.schema import AttributeSchema, DataError, Manifest, sha256_of
from mads.label.base import (
    Labeller,
    attribute_schema,
    by_sample,
    fit_labeller,
    fit_sample_labeller,
    labelled,
    save_labeller,
)
from mads.label.prepared import DOMAIN, PreparedDocuments

FIT_BYTES = 64e6  # training text that labellers learn from
_BATCH_CHARACTERS = 4_000_000
_BATCH_SAMPLES = 1 << 14
_LOCK = "labelling"  # an empty file, locked while the attributes of a directory change
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def labeller_path(directory: str | os.PathLike, schema: AttributeSchema) -> Path:
    """Where a fitted labeller lies in a prepared directory."""
    return Path(directory) / "labellers" / f"{schema.folder}.npz"


def label_prepared(
    directory: str | os.PathLike,
    labellers: Mapping[str, Labeller],
    columns: Mapping[str, Sequence[Any]] | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[str], None] = print,
) -> Manifest:
    """Fit the labellers on training documents of a prepared directory and add or replace their attributes.

    Args:
        labellers: attribute name -> labeller
        columns: record fields that labellers read, field -> one value for each document (see PreparedDocuments)
        seed: of the sample that labellers learn from
        workers: processes; the files are the same for any number

    Raises:
        DataError: a labeller that needs what the directory does not have, or cannot be fitted; another process that changes the
            directory. It is then as it was.
    """
    directory = Path(directory)
    with _locked(directory):
        prepared = PreparedDocuments(directory, columns)
        for name, labeller in labellers.items():
            _check(prepared, name, labeller, columns or {})
        if not prepared.lossless:
            progress("note: the tokenizer does not give back every text; labels are of the text as its tokens decode")
        _fit(prepared, labellers, seed, progress)
        old = {schema.name: schema for schema in prepared.manifest.attributes}
        schemas = {}
        for name, labeller in labellers.items():
            revision = old[name].revision + 1 if name in old else 0
            schemas[name] = dataclasses.replace(attribute_schema(name, labeller), revision=revision)
        try:
            for name, labeller in labellers.items():
                _delete_strays(directory, prepared.manifest, name)
                save_labeller(labeller_path(directory, schemas[name]), labeller)
            start = time.monotonic()
            megabytes = _label_shards(prepared, labellers, schemas, workers) / 1e6
            seconds = max(time.monotonic() - start, 1e-3)
            rate = f"{megabytes:.1f} MB in {seconds:.1f} s ({megabytes / seconds:.1f} MB/s)"
            progress(f"labelled {prepared.documents:,} documents, {rate}")
            attributes = [schemas.get(name, schema) for name, schema in old.items()]
            attributes += [schema for name, schema in schemas.items() if name not in old]
            return _commit(directory, prepared.manifest, attributes)
        except BaseException:
            for name in labellers:
                _delete_strays(directory, Manifest.read(directory), name)
            raise


def remove_attributes(directory: str | os.PathLike, names: Sequence[str]) -> Manifest:
    """Take attributes out of a prepared directory.

    Raises:
        DataError: an attribute that is not there.
    """
    directory = Path(directory)
    with _locked(directory):
        manifest = Manifest.read(directory)
        there = [schema.name for schema in manifest.attributes]
        if unknown := sorted(set(names) - set(there)):
            raise DataError(f"{directory} has no attribute {unknown[0]!r} to remove; it has {', '.join(there) or 'none'}")
        return _commit(directory, manifest, [schema for schema in manifest.attributes if schema.name not in names])


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    Manifest.read_to_change(directory)  # no lock file in a folder that is not ours
    path = directory / _LOCK
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another process is labelling {directory}; wait for it") from error
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise DataError(f"another process has just labelled {directory}; run the command again")  # it removed this file
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _check(prepared: PreparedDocuments, name: str, labeller: Labeller, columns: Mapping[str, Sequence[Any]]) -> None:
    """A labeller can only read what a prepared directory still has."""
    if not _NAME.fullmatch(name):
        raise DataError(f"attribute name {name!r} is used as a file name; use letters, digits, '_', '-' and '.'")
    kind, reads = type(labeller).__name__, getattr(labeller, "reads", ("text",))
    if missing := sorted(set(labeller.fields) - set(columns)):
        raise DataError(
            f"attribute {name}: {kind} reads the field {missing[0]!r} of the records, which a prepared directory does not keep; "
            f"give it as data.attributes.{name}.column=FILE, a Parquet or JSONL file with one row for each of the "
            f"{prepared.documents} documents, the shards of train before those of heldout"
        )
    if "origin" in reads:
        raise DataError(f"attribute {name}: {kind} reads paths of files, which a prepared directory does not keep; prepare anew")
    if "domain" in reads and (name == DOMAIN or DOMAIN not in {schema.name for schema in prepared.manifest.attributes}):
        raise DataError(f"attribute {name}: {kind} needs the attribute 'domain' of the directory; prepare anew with it")


def _fit(prepared: PreparedDocuments, labellers: Mapping[str, Labeller], seed: int, progress: Callable[[str], None]) -> None:
    categories = sorted({field for labeller in labellers.values() for field in labeller.categories})
    documents = samples = None
    for name, labeller in labellers.items():
        start = time.monotonic()
        if by_sample(labeller):
            samples = prepared.fit_samples(FIT_BYTES, seed) if samples is None else samples
            fit_sample_labeller(prepared.directory, labeller, samples, prepared.tokenizer)
            what = f"{len(samples):,} training samples"
        else:
            documents = prepared.fit_sample(FIT_BYTES, seed, categories) if documents is None else documents
            fit_labeller(prepared.directory, labeller, documents)
            what = f"{len(documents):,} training documents"
        progress(f"labeller {name} fitted on {what}, {time.monotonic() - start:.1f} s")


def _label_shards(
    prepared: PreparedDocuments, labellers: Mapping[str, Labeller], schemas: Mapping[str, AttributeSchema], workers: int
) -> int:
    """Write the columns of all shards; bytes of text that were labelled."""
    shards = prepared.shards()
    tasks = [(prepared.directory, dict(labellers), dict(schemas), prepared.columns_of(*shard), *shard) for shard in shards]
    if min(workers, len(shards)) <= 1:
        return sum(map(_label_shard, tasks))
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of threads that libraries have started
    with ProcessPoolExecutor(min(workers, len(shards)), context) as pool:
        return sum(pool.map(_label_shard, tasks))


def _label_shard(task: tuple) -> int:
    """Label the documents of a shard and write its columns; everything that it needs is in the task, so any process can do it."""
    directory, labellers, schemas, columns, part, shard = task
    prepared = PreparedDocuments(directory)
    by_document = {name: labeller for name, labeller in labellers.items() if not by_sample(labeller)}
    found: dict[str, tuple[list, list]] = {name: ([], []) for name in labellers}
    size = 0
    for batch in _batches(prepared.read(part, shard, columns=columns)):
        size += sum(len(document.text.encode()) for document in batch)
        for name, labeller in by_document.items():
            _add(found[name], labelled(name, labeller, batch))
    samples = prepared.samples_of(part, shard)
    for start in range(0, rows := int(samples.sum()), _BATCH_SAMPLES):
        some = prepared.samples(part, shard, range(start, min(start + _BATCH_SAMPLES, rows)))
        for name in labellers.keys() - by_document.keys():
            _add(found[name], labelled(name, labellers[name], some))
    for name, (codes, values) in found.items():
        schema, times = schemas[name], samples if name in by_document else 1
        write_column(
            attribute_path(directory, part, schema.folder, shard),
            schema,
            np.repeat(np.concatenate([np.zeros(0, np.uint16), *codes]), times),
            np.repeat(np.concatenate([np.zeros(0, np.float32), *values]), times) if schema.continuous else None,
            rows,
        )
    return size


def _add(column: tuple[list, list], found: tuple[np.ndarray, np.ndarray | None]) -> None:
    column[0].append(found[0])
    if found[1] is not None:
        column[1].append(found[1])


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _own_files(directory: Path, schema: AttributeSchema) -> list[Path]:
    columns = directory.glob(f"*/attributes/{schema.folder}/shard-*.arrow")
    return sorted([*columns, *(path for path in [labeller_path(directory, schema)] if path.is_file())])


def _delete_strays(directory: Path, manifest: Manifest, name: str) -> None:
    """What a run that was killed left of an attribute's other revisions."""
    kept = {schema.folder for schema in manifest.attributes}
    folders = [*directory.glob("*/attributes/*"), *(path.with_suffix("") for path in directory.glob("labellers/*.npz*"))]
    for folder in {path.name.removesuffix(".npz") for path in folders} - kept:
        if folder.split("@")[0] == name:
            revision = int(folder.split("@")[1]) if "@" in folder else 0
            _delete(directory, AttributeSchema(name, ("any",), revision=revision))


def _delete(directory: Path, schema: AttributeSchema) -> None:
    for folder in directory.glob(f"*/attributes/{schema.folder}"):
        shutil.rmtree(folder)
    for ending in ("", ".tmp"):
        Path(f"{labeller_path(directory, schema)}{ending}").unlink(missing_ok=True)


def _commit(directory: Path, manifest: Manifest, attributes: list[AttributeSchema]) -> Manifest:
    """Replace the manifest by one with these attributes, then remove the files of those that it no longer names.

    Raises:
        DataError: documents were added to the directory meanwhile; their shards have no such column.
    """
    if Manifest.read(directory).fingerprint != manifest.fingerprint:
        raise DataError(f"{directory} has changed while it was labelled (documents were added?); run the command again")
    kept = {(schema.name, schema.revision) for schema in attributes}
    gone = [schema for schema in manifest.attributes if (schema.name, schema.revision) not in kept]
    known = {(schema.name, schema.revision) for schema in manifest.attributes}
    files = dict(manifest.files)
    for schema in gone:
        for path in _own_files(directory, schema):
            files.pop(path.relative_to(directory).as_posix(), None)
    for schema in attributes:
        if (schema.name, schema.revision) not in known:
            for path in _own_files(directory, schema):
                name = path.relative_to(directory).as_posix()
                files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    new = dataclasses.replace(manifest, files=files, attributes=attributes)
    new.write(directory)
    for schema in gone:
        _delete(directory, schema)
    return new
