"""From documents to a prepared directory (see mads.data.schema for its layout).

Documents are split into train and held-out before anything learns from them; tokenizer and labellers see training documents only.
The same input and settings give the same bytes. The manifest is written last, so a directory without one is unfinished.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mads.data.attributes import write_column
from mads.data.documents import Document, Rejects, Source
from mads.data.indexed import token_dtype
from mads.data.parts import PARTS, PartWriter, seal, window_lengths
from mads.data.pool import attribute_path
from mads.data.references import ReferenceSource, split_parts
from mads.data.schema import AttributeSchema, DataError, Manifest
from mads.data.settings import PrepareSettings
from mads.data.split import Corpus, Survey, fit_documents, heldout_documents, survey, text_key
from mads.data.tokenizer import Tokenizer, train_sentencepiece
from mads.data.workspace import claimed, existing_manifest
from mads.label.base import Labeller

_LABELLER_BYTES = 64e6  # training text that labellers learn from
_BATCH_BYTES = 4_000_000  # text that is tokenised and labelled at a time
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def prepare(
    directory: str | os.PathLike,
    source: Source,
    labellers: dict[str, Labeller],
    references: ReferenceSource | None,
    settings: PrepareSettings,
    attribute_settings: dict[str, Any] | None = None,
    progress: Callable[[str], None] = print,
) -> Manifest:
    """Prepare a directory, or return its manifest at once if it was prepared with equal settings.

    Args:
        labellers: attribute name -> labeller; a document's labels go to all of its samples
        references: None prepares without reference tasks (selections that need rewards will refuse to train on it)
        attribute_settings: JSON configuration of the labellers; if it changes, the directory is another one
        progress: receives lines of text

    A rest shorter than min_sample_tokens shares its tokens with the window before it (mads.data.parts.window_lengths); a document
    with fewer tokens in all, its end included, is rejected and counted.

    Raises:
        DataError: unusable input or settings, or a directory that was prepared with other settings. Names the remedy.
    """
    directory = Path(directory)
    for name in labellers:
        if not _NAME.fullmatch(name):
            raise DataError(f"attribute name {name!r} is used as a file name; use letters, digits, '_', '-' and '.'")
    identity = {
        "settings": settings.identity(),
        "source": source.describe(),
        "references": references.describe() if references is not None else None,
        "attributes": attribute_settings or {name: {"class": type(labeller).__name__} for name, labeller in labellers.items()},
    }
    identity = json.loads(json.dumps(identity))  # as it will be read back: no tuples, keys are strings
    manifest = existing_manifest(directory, identity, progress)
    if manifest is not None:
        return manifest
    with claimed(directory, progress):
        return _Preparation(directory, source, labellers, settings, progress).run(references, identity)


class _Preparation:
    """One run of prepare."""

    def __init__(self, directory: Path, source: Source, labellers: dict[str, Labeller], settings: PrepareSettings, progress):
        self.directory, self.labellers, self.settings, self.progress = directory, labellers, settings, progress
        self.corpus, self.rejects, self.source = Corpus(source), Rejects(), source
        self.domains_held: set[str] = set()

    def run(self, references: ReferenceSource | None, identity: dict[str, Any]) -> Manifest:
        settings = self.settings
        reference_rejects = Rejects()
        counts = self._write_references(references, reference_rejects)  # first: what cannot be had fails before the long work
        found = self._read()
        heldout = heldout_documents(found, settings.heldout_fraction, settings.seed)
        tokenizer, record = self._make_tokenizer(found, ~heldout)
        self._fit_labellers(found, ~heldout)
        schemas = [dataclasses.replace(labeller.schema(), name=name) for name, labeller in self.labellers.items()]
        parts = self._write_parts(found, heldout, tokenizer, schemas)
        self.rejects.extend(reference_rejects)
        self.rejects.write(self.directory / "rejected.jsonl")
        manifest = seal(
            self.directory,
            seq_length=settings.seq_length,
            parts=parts,
            attributes=schemas,
            references=counts,
            tokenizer=record,
            source=identity,
            rejected=self.rejects.counts,
        )
        self.progress(f"prepared {self.directory}: fingerprint {manifest.fingerprint[:16]}")
        return manifest

    def _read(self) -> Survey:
        start = time.monotonic()
        found = survey(self.corpus.read(self.rejects))
        self.rejects.raise_if_too_many(len(found), self.settings.max_rejected_fraction)
        if not len(found):
            described = json.dumps(self.source.describe())[:500]
            raise DataError(f"the source holds no document; check its paths and fields, or give other data: {described}")
        megabytes, seconds = found.sizes.sum() / 1e6, time.monotonic() - start
        self.progress(
            f"read {len(found):,} documents of {len(found.domains)} domains, {megabytes:.1f} MB "
            f"({megabytes / max(seconds, 1e-3):.1f} MB/s), {self.rejects.total} inputs rejected"
        )
        return found

    def _chosen(self, indices: np.ndarray) -> Iterator[Document]:
        """The documents at ascending indices, in one pass."""
        wanted = iter(indices.tolist())
        index = next(wanted, None)
        for i, document in enumerate(self.corpus):
            if i == index:
                yield document
                index = next(wanted, None)
                if index is None:
                    return

    def _make_tokenizer(self, found: Survey, train: np.ndarray) -> tuple[Tokenizer, dict[str, Any]]:
        settings, start = self.settings, time.monotonic()
        path = self.directory / ("tokenizer.model" if settings.tokenizer_kind == "sentencepiece" else "tokenizer.json")
        if settings.tokenizer_path is None:
            chosen = fit_documents(found, train, settings.tokenizer_megabytes * 1e6, settings.seed)
            train_sentencepiece((d.text for d in self._chosen(chosen)), settings.vocab_size, path)
            how = f"trained on {found.sizes[chosen].sum() / 1e6:.1f} MB"
        else:
            shutil.copyfile(settings.tokenizer_path, path)
            how = f"given as {Path(settings.tokenizer_path).name}"
        tokenizer = Tokenizer.open(path, settings.tokenizer_kind)
        if tokenizer.vocab_size > settings.vocab_size:
            raise DataError(
                f"the tokenizer has {tokenizer.vocab_size} ids, model.vocab_size is {settings.vocab_size}: "
                f"set model.vocab_size={tokenizer.vocab_size} or more, or give another tokenizer"
            )
        lossless = tokenizer.lossless
        self.progress(f"tokenizer {how}: {tokenizer.vocab_size:,} ids, {time.monotonic() - start:.1f} s")
        if not lossless:
            self.progress("note: this tokenizer does not give back every text: it changes white space or rare characters")
        record = {"kind": tokenizer.kind, "file": path.name, "vocab_size": tokenizer.vocab_size, "eod": tokenizer.eod}
        return tokenizer, record | {"lossless": lossless}

    def _fit_labellers(self, found: Survey, train: np.ndarray) -> None:
        if not self.labellers:
            return
        documents = list(self._chosen(fit_documents(found, train, _LABELLER_BYTES, self.settings.seed)))
        for name, labeller in self.labellers.items():
            start = time.monotonic()
            labeller.fit(documents)
            self.progress(f"labeller {name} fitted on {len(documents):,} training documents, {time.monotonic() - start:.1f} s")

    def _write_parts(
        self, found: Survey, heldout: np.ndarray, tokenizer: Tokenizer, schemas: list[AttributeSchema]
    ) -> dict[str, dict[str, Any]]:
        settings, dtype = self.settings, token_dtype(tokenizer.vocab_size)
        columns = {part: {s.name: ([], []) for s in schemas} for part in PARTS}
        longest, start, shown, done = [0, 0], time.monotonic(), time.monotonic(), 0
        with (
            PartWriter(self.directory, "train", dtype, settings.shard_tokens) as train,
            PartWriter(self.directory, "heldout", dtype, settings.shard_tokens) as held,
        ):
            writers = dict(zip(PARTS, (train, held)))
            for first, documents in self._batches(found):
                self._write_batch(documents, heldout[first : first + len(documents)], tokenizer, writers, columns, longest)
                done = first + len(documents)
                if time.monotonic() - shown > 5:
                    shown = time.monotonic()
                    rate = found.sizes[:done].sum() / 1e6 / (shown - start)
                    self.progress(f"tokenised and labelled {done:,} of {len(found):,} documents, {rate:.1f} MB/s")
            if done != len(found):
                raise DataError(f"the source changed while it was read: {len(found)} documents, then {done}; prepare again")
        self._check_parts(found, heldout, writers, longest)
        for part, by_name in columns.items():
            for schema in schemas:
                codes, values = (np.concatenate([np.zeros(0, np.uint16), *column]) for column in by_name[schema.name])
                borders = np.cumsum([0, *writers[part].shards])
                for shard, (first, last) in enumerate(zip(borders[:-1], borders[1:])):
                    write_column(
                        attribute_path(self.directory, part, schema.name, shard),
                        schema,
                        codes[first:last],
                        values[first:last] if schema.continuous else None,
                        int(last - first),
                    )
        return {part: writer.summary() for part, writer in writers.items()}

    def _batches(self, found: Survey) -> Iterator[tuple[int, list[Document]]]:
        """(index of the first, documents) in input order, about _BATCH_BYTES each."""
        batch, size, first = [], 0, 0
        for i, document in enumerate(self.corpus):
            if i >= len(found) or text_key(document.text) != found.keys[i]:
                raise DataError(f"the source changed while it was read, at {document.origin}:{document.line}; prepare again")
            batch.append(document)
            size += len(document.text)
            if size >= _BATCH_BYTES:
                yield first, batch
                batch, size, first = [], 0, i + 1
        if batch:
            yield first, batch

    def _write_batch(self, documents, heldout, tokenizer, writers, columns, longest) -> None:
        settings = self.settings
        kept, windows, parts = [], [], []
        for document, held, tokens in zip(documents, heldout, tokenizer.encode([d.text for d in documents])):
            tokens = np.append(tokens, np.int32(tokenizer.eod))
            lengths = window_lengths(len(tokens), settings.seq_length, settings.min_sample_tokens)
            longest[:] = max(longest[0], len(tokens)), max(longest[1], lengths.max(initial=0))
            if not len(lengths):
                detail = f"{len(tokens)} tokens, min_sample_tokens is {settings.min_sample_tokens}"
                self.rejects.add("too short", document.origin, document.line, detail)
                continue
            part = PARTS[int(held)]
            writers[part].add_document(tokens, lengths)
            kept.append(document)
            windows.append(len(lengths))
            parts.append(part)
            if held:
                self.domains_held.add(document.domain)
        if not kept:
            return
        windows, parts = np.array(windows), np.array(parts)
        for name, labeller in self.labellers.items():
            codes, values = labeller.label(kept)
            if len(codes) != len(kept):
                raise DataError(f"labeller {name} gave {len(codes)} labels for {len(kept)} documents")
            for part in PARTS:
                mine = parts == part
                columns[part][name][0].append(np.repeat(codes[mine], windows[mine]))
                if values is not None:
                    columns[part][name][1].append(np.repeat(values[mine], windows[mine]))

    def _check_parts(self, found: Survey, heldout: np.ndarray, writers: dict[str, PartWriter], longest: list[int]) -> None:
        """Too many rejects, an empty training part; notes about what is not as one would expect."""
        settings = self.settings
        if not writers["train"].samples:
            raise DataError(
                f"no training document has min_sample_tokens={settings.min_sample_tokens} tokens: the longest of {len(found)} "
                f"documents has {longest[0]}; lower data.min_sample_tokens or give longer documents"
            )
        self.rejects.raise_if_too_many(sum(w.documents for w in writers.values()), settings.max_rejected_fraction)
        if longest[1] < settings.seq_length:
            self.progress(
                f"note: no document fills seq_length={settings.seq_length}; the longest sample has {longest[1]} tokens, "
                "so every row is packed from several documents"
            )
        without = sorted(set(found.domains) - self.domains_held)
        if without and settings.heldout_fraction:
            self.progress(f"note: nothing is held out of {len(without)} domains with few documents: {', '.join(without[:10])}")
        for part, writer in writers.items():
            self.progress(f"{part}: {writer.documents:,} documents, {writer.samples:,} samples, {writer.tokens:,} tokens")

    def _write_references(self, references: ReferenceSource | None, rejects: Rejects) -> dict[str, dict[str, int]]:
        if references is None:
            self.progress("note: no reference tasks; only selections without rewards can train on this data")
            return {}
        counts: dict[str, dict[str, int]] = {}
        folder = self.directory / "references"
        folder.mkdir(exist_ok=True)
        for task, examples in references.examples(rejects).items():
            if not _NAME.fullmatch(task):
                raise DataError(f"reference task name {task!r} is used as a file name; use letters, digits, '_', '-' and '.'")
            rows = split_parts(examples, self.settings.seed)
            lines = [json.dumps(row) + "\n" for row in rows]
            temporary = folder / f"{task}.jsonl.tmp"
            temporary.write_text("".join(lines), encoding="ascii")
            os.replace(temporary, folder / f"{task}.jsonl")
            counts[task] = {part: sum(row["part"] == part for row in rows) for part in ("direction", "audit", "report")}
            self.progress(f"reference task {task}: " + ", ".join(f"{n} {part}" for part, n in counts[task].items()))
        return counts
