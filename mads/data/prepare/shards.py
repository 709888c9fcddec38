"""One output shard: its documents are read again, tokenised, labelled and written, in input order."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mads.data.attributes import write_column
from mads.data.documents import Document, Rejects
from mads.data.indexed import IndexedWriter, token_dtype
from mads.data.megatron import WindowWriter, document_tokens
from mads.data.parts import window_lengths
from mads.data.pool import attribute_path, key_path, shard_prefix
from mads.data.prepare.board import Tally
from mads.data.prepare.fit import Fitted, load_fitted, read_again
from mads.data.prepare.job import Job
from mads.data.prepare.plan import HELDOUT, REMOVED, Plan
from mads.data.schema import PARTS, DataError, sha256_of
from mads.data.split import text_keys
from mads.label.base import by_sample, labelled, without_end

_BATCH_BYTES = 4_000_000  # text that is tokenised and labelled at a time


def write_shard(job: Job, index: int, scratch: Path, tally: Tally) -> list[str]:
    """Write both parts' files of shard `index` of this generation, and shards/INDEX.json and .rejected.jsonl."""
    plan, fitted, start = Plan.load(job), load_fitted(job), time.monotonic()
    shard = (_TokenShard if job.takes_tokens else _Shard)(job, index, fitted, scratch)
    first, last = plan.about["shards"][index]
    with shard:
        for documents, held, keys in _batches(job, plan, first, last):
            shard.add(documents, held, keys)
            tally.add(len(documents), sum(len(d.text.encode()) for d in documents))
    base = scratch / job.result("shards", index, "")
    base.parent.mkdir(parents=True)
    shard.rejects.write(base.with_name(base.name + ".rejected.jsonl"))
    base.with_name(base.name + ".json").write_text(json.dumps(shard.summary()))
    megabytes, seconds = tally.bytes / 1e6, max(1e-3, time.monotonic() - start)
    what = f"{shard.done} shard {index + 1} of {len(plan.about['shards'])}"
    return [f"{what}: {tally.documents:,} documents, {megabytes:.1f} MB, {megabytes / seconds:.1f} MB/s"]


def _batches(job: Job, plan: Plan, first: int, last: int) -> Iterator[tuple[list[Document], np.ndarray, np.ndarray]]:
    """(documents, which of them are held out, their keys and checks [n, 2]), about _BATCH_BYTES each."""
    indices = first + np.flatnonzero(plan.state[first:last] != REMOVED)
    batch: list[Document] = []
    held: list[bool] = []
    keys: list[tuple[int, int]] = []
    size = 0
    for place, document in read_again(job, plan, indices):
        pair = text_keys(document.text.encode("utf-8"))
        if pair[0] != plan.keys[place]:
            raise DataError(f"the source changed while it was read, at {document.origin}:{document.line}; prepare again")
        batch.append(document)
        held.append(plan.state[place] == HELDOUT)
        keys.append(pair)
        size += len(document.text)
        if size >= _BATCH_BYTES:
            yield batch, np.array(held), np.array(keys, dtype=np.uint64)
            batch, held, keys, size = [], [], [], 0
    if batch:
        yield batch, np.array(held), np.array(keys, dtype=np.uint64)


class _Shard:
    """The writers of one shard's files, below a scratch folder. `index` counts from this generation's first shard."""

    done = "tokenised and labelled"

    def __init__(self, job: Job, index: int, fitted: Fitted, scratch: Path):
        self._job, self._index, self._number, self._fitted, self._scratch = job, index, job.first_shard + index, fitted, scratch
        self._writers: dict[str, IndexedWriter | WindowWriter] = {}
        self._stack = ExitStack()
        self._columns = {part: {s.name: ([], []) for s in fitted.schemas} for part in PARTS}
        self._keys: dict[str, list[np.ndarray]] = {part: [np.zeros((0, 2), np.uint64)] for part in PARTS}
        self._sample_labellers = [name for name, labeller in fitted.labellers.items() if by_sample(labeller)]
        self.rejects = Rejects()
        self.domains_held: set[str] = set()
        self.longest_document = self.longest_sample = 0

    def __enter__(self) -> _Shard:
        for part in PARTS:
            (self._scratch / part / "keys").mkdir(parents=True)
            writer = self._writer(shard_prefix(self._scratch, part, self._number))
            self._writers[part] = self._stack.enter_context(writer)
        return self

    def _writer(self, prefix: Path) -> IndexedWriter | WindowWriter:
        return IndexedWriter(prefix, token_dtype(self._fitted.tokenizer.vocab_size))

    def _tokens(self, documents: list[Document]) -> list[np.ndarray]:
        """Tokens of each document with its end."""
        tokenizer = self._fitted.tokenizer
        return [np.append(tokens, np.int32(tokenizer.eod)) for tokens in tokenizer.encode([d.text for d in documents])]

    def _write(self, part: str, document: Document, tokens: np.ndarray, lengths: np.ndarray) -> None:
        self._writers[part].add_document(tokens, lengths)

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)
        if error[0] is None:
            self._write_columns()

    def add(self, documents: list[Document], held: np.ndarray, keys: np.ndarray) -> None:
        """Tokenise, label and write some documents; those that are too short are rejected."""
        settings = self._job.settings
        windows, samples = np.zeros(len(documents), dtype=np.int64), []
        for i, (document, tokens) in enumerate(zip(documents, self._tokens(documents))):
            lengths = window_lengths(len(tokens), settings.seq_length, settings.min_sample_tokens)
            self.longest_document = max(self.longest_document, len(tokens))
            windows[i] = len(lengths)
            if not len(lengths):
                detail = f"{len(tokens)} tokens, min_sample_tokens is {settings.min_sample_tokens}"
                self.rejects.add("too short", document.origin, document.line, detail)
                continue
            self.longest_sample = max(self.longest_sample, int(lengths.max()))
            self._write(PARTS[int(held[i])], document, tokens, lengths)
            if self._sample_labellers:
                samples += np.split(tokens, np.cumsum(lengths)[:-1])
        taken = windows > 0
        for part, mine in zip(PARTS, (taken & ~held, taken & held)):
            self._keys[part].append(keys[mine])
        self.domains_held.update(documents[i].domain for i in np.flatnonzero(taken & held))
        if taken.any():
            kept = [documents[i] for i in np.flatnonzero(taken)]
            for name, labeller in self._fitted.labellers.items():
                if name not in self._sample_labellers:
                    self._label(name, labelled(name, labeller, kept), held[taken], windows[taken])
            samples = without_end(samples, self._fitted.tokenizer.eod)
            for name in self._sample_labellers:
                found = labelled(name, self._fitted.labellers[name], samples)
                self._label(name, found, np.repeat(held[taken], windows[taken]), np.ones(len(samples), np.int64))

    def _label(self, name: str, found: tuple[np.ndarray, np.ndarray | None], held: np.ndarray, windows: np.ndarray) -> None:
        """Keep labels, each for as many samples as `windows` says."""
        codes, values = found
        for part, mine in zip(PARTS, (~held, held)):
            column = self._columns[part][name]
            column[0].append(np.repeat(codes[mine], windows[mine]))
            if values is not None:
                column[1].append(np.repeat(values[mine], windows[mine]))

    def _write_columns(self) -> None:
        for part in PARTS:
            np.save(key_path(self._scratch, part, self._number), np.concatenate(self._keys[part]))
            for schema in self._fitted.schemas:
                codes, values = self._columns[part][schema.name]
                write_column(
                    attribute_path(self._scratch, part, schema.folder, self._number),
                    schema,
                    np.concatenate([np.zeros(0, np.uint16), *codes]),
                    np.concatenate([np.zeros(0, np.float32), *values]) if schema.continuous else None,
                    self._writers[part].sequences,
                )

    def summary(self) -> dict:
        """What the seal needs to know; files with their hashes."""
        files = [p for p in sorted(self._scratch.rglob("*")) if p.is_file() and "work" not in p.relative_to(self._scratch).parts]
        return {
            "parts": {
                part: {"documents": w.documents, "samples": w.sequences, "tokens": w.tokens} for part, w in self._writers.items()
            },
            "rejected": self.rejects.counts,
            "first_rejected": self.rejects.entries[:5],
            "domains_held": sorted(self.domains_held),
            "longest_document": self.longest_document,
            "longest_sample": self.longest_sample,
            "files": {p.relative_to(self._scratch).as_posix(): file_entry(p) for p in files},
        }


class _TokenShard(_Shard):
    """A shard whose tokens are there already: the source's file itself, with indices of ours."""

    @property
    def done(self) -> str:
        how = sorted({writer.how for writer in self._writers.values()} - {""})
        return f"labelled {self._job.source.files[self._index][0]}, {' and '.join(how) or 'not needed'}:"

    def _writer(self, prefix: Path) -> WindowWriter:
        others = [shard_prefix(self._scratch, part, self._number).with_suffix(".bin") for part in PARTS]
        return WindowWriter(prefix, self._job.source.reader(self._index), [p for p in others if p != prefix.with_suffix(".bin")])

    def _tokens(self, documents: list[Document]) -> list[np.ndarray]:
        reader = self._job.source.reader(self._index)
        return [document_tokens(reader, document.line - 1) for document in documents]

    def _write(self, part: str, document: Document, tokens: np.ndarray, lengths: np.ndarray) -> None:
        self._writers[part].add(document.line - 1, lengths)


def file_entry(path: Path) -> dict:
    """A file's entry in the manifest."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
