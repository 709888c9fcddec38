"""Documents that are tokens already: Megatron's `.bin/.idx` files, taken as they are.

Nothing is tokenised again. A preparation links the `.bin` file into its directory and writes indices of its own for it: one whose
sequences are the windows of the training documents, one for the held-out ones. Documents that are left out (too short, removed)
stay in these indices as empty ones, so document d is the same in all of them and in the attributes beside the file.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mads.data.columnar import read_arrow, read_parquet
from mads.data.documents import (
    JSONL_ENDINGS,
    Document,
    Marks,
    Rejects,
    Wanted,
    describe_files,
    domain_of_file,
    find_files,
    read_jsonl,
)
from mads.data.indexed import IndexedReader, index_paths, write_index
from mads.data.schema import DataError, sha256_of
from mads.data.tokenizer import Tokenizer

ATTRIBUTES = ".attributes"
_READERS = {".parquet": read_parquet, ".arrow": read_arrow, **dict.fromkeys(JSONL_ENDINGS, read_jsonl)}


class TokenFilesSource:
    """Documents of Megatron token files, as text and as tokens; each file is a unit, and becomes a shard.

    Args:
        paths: prefixes, names of `.bin` or `.idx` files, folders (searched for `.idx` files) or globs.
        tokenizer_path, tokenizer_kind: what the tokens were made with (data.tokenizer).
        domain_field: field of the attributes beside a file that holds the domain; None takes the file's name.
        attribute_fields: further fields that labellers read.

    Attributes beside a file are PREFIX.attributes.parquet, .arrow or .jsonl (JSON lines also compressed): a row for each
    document, in their order.

    Raises:
        DataError: a path that matches no file, a pair of files that is damaged, no tokenizer, or no attributes where a field is
            asked for.
    """

    def __init__(
        self,
        paths: Sequence[str],
        tokenizer_path: str | None,
        tokenizer_kind: str = "sentencepiece",
        domain_field: str | None = None,
        attribute_fields: Sequence[str] = (),
    ):
        if tokenizer_path is None:
            raise DataError("token files need the tokenizer that made them: set data.tokenizer.path (and data.tokenizer.kind)")
        self.files = [_bin_of(file) for file in find_files([_expanded(p) for p in paths], (".idx",))]
        self.tokenizer_path, self.tokenizer_kind = tokenizer_path, tokenizer_kind
        self.domain_field, self.attribute_fields = domain_field, tuple(attribute_fields)
        asked = [*([] if domain_field is None else [domain_field]), *attribute_fields]
        self.attributes = [_attributes_of(path, asked) if asked else None for _, path in self.files]
        self._open: tuple[int, IndexedReader] | None = None
        self._tokenizer: Tokenizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": None, "_tokenizer": None}

    def reader(self, unit: int) -> IndexedReader:
        """The token file of a unit. Raises DataError if it is damaged, or if an index of mads leaves some of its tokens out."""
        if self._open is None or self._open[0] != unit:
            reader = IndexedReader(self.files[unit][1].removesuffix(".bin"))
            if int(reader.lengths.sum(dtype=np.int64)) != len(reader.tokens):
                raise DataError(
                    f"{reader.idx_path} leaves tokens of its .bin file out; give the file as its tokenisation wrote it"
                )
            self._open = unit, reader
        return self._open[1]

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.open(self.tokenizer_path, self.tokenizer_kind)
        return self._tokenizer

    def read(self, unit: int, rejects: Rejects, wanted: Wanted | None = None, marks: Marks | None = None) -> Iterator[Document]:
        """Documents with their text, the end of document left away; `line` is the number of the document from 1."""
        reader, tokenizer, name = self.reader(unit), self.tokenizer, self.files[unit][0]
        for line, domain, fields in self._rows(unit, rejects, wanted):
            tokens = document_tokens(reader, line - 1)
            if wanted is None:
                _check_ids(tokens, tokenizer.vocab_size, name, line)
            ended = len(tokens) > 0 and tokens[-1] == tokenizer.eod
            text = tokenizer.decode(tokens[:-1] if ended else tokens)
            if text.strip():
                yield Document(text, domain, name, line, fields)
            else:
                rejects.add("empty text", name, line, f"{len(tokens)} tokens")

    def _rows(self, unit: int, rejects: Rejects, wanted: Wanted | None) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """(number from 1, domain, attribute fields) of each document; a row that cannot be used is a reject."""
        name, documents = self.files[unit][0], len(self.reader(unit).documents) - 1
        if self.attributes[unit] is None:
            lines = range(1, documents + 1) if wanted is None else wanted.lines.tolist()
            yield from ((line, domain_of_file(name), {}) for line in lines)
            return
        path = self.attributes[unit]
        beside = name.removesuffix(".bin") + path[len(self.files[unit][1].removesuffix(".bin")) :]
        read = next(reader for ending, reader in _READERS.items() if path.endswith(ATTRIBUTES + ending))
        strings, rows, bad = [] if self.domain_field is None else [self.domain_field], 0, Rejects()
        only = wanted if read is read_jsonl else None if wanted is None else wanted.lines.tolist()
        for line, found in read(path, beside, strings, bad, self.attribute_fields, only):
            rows += 1
            if line <= documents:
                domain = found[0] if strings else domain_of_file(name)
                yield line, domain, dict(zip(self.attribute_fields, found[len(strings) :]))
        rejects.extend(bad)
        if wanted is None and rows + bad.total != documents:
            raise DataError(f"{beside} has {rows + bad.total} rows, {name} has {documents} documents: it belongs to another file")

    def documents(self, rejects: Rejects) -> Iterator[Document]:
        for unit in range(len(self.files)):
            yield from self.read(unit, rejects)

    def describe(self, hashed: bool = True) -> dict[str, Any]:
        beside = [path.removesuffix(".bin") + ".idx" for _, path in self.files]
        beside += [path for path in self.attributes if path is not None]
        return {
            "kind": "megatron",
            "files": describe_files(self.files, hashed),
            "beside": [{"name": os.path.basename(path), "content": sha256_of(path)} for path in beside],
            "domain_field": self.domain_field,
            "attribute_fields": list(self.attribute_fields),
        }


def _expanded(path: str) -> str:
    """A prefix or the name of either file as that of the index."""
    for ending in (".bin", ".idx"):
        path = path.removesuffix(ending)
    if os.path.isdir(path) or (not os.path.exists(f"{path}.idx") and not glob.glob(f"{path}.idx", recursive=True)):
        return path
    return f"{path}.idx"


def _bin_of(file: tuple[str, str]) -> tuple[str, str]:
    name, path = (part.removesuffix(".idx") + ".bin" for part in file)
    if not os.path.isfile(path):
        raise DataError(f"{file[1]} has no {os.path.basename(path)} beside it; data.paths names .bin/.idx pairs")
    return name, path


def _attributes_of(path: str, asked: Sequence[str]) -> str:
    candidates = [path.removesuffix(".bin") + ATTRIBUTES + ending for ending in _READERS]
    found = [candidate for candidate in candidates if os.path.isfile(candidate)]
    if len(found) != 1:
        what = f"{len(found)} files" if found else "none"
        raise DataError(
            f"the fields {list(asked)} are read from one file beside {path}, {os.path.basename(candidates[0])} (or .arrow, "
            f".jsonl); there is {what}: write it with a row for each document, or leave data.attribute_fields and "
            "data.domain_field out"
        )
    return found[0]


def document_tokens(reader: IndexedReader, document: int) -> np.ndarray:
    """All tokens of a document, a read-only view."""
    start, end = document_span(reader, document)
    return reader.tokens[start:end]


def document_span(reader: IndexedReader, document: int) -> tuple[int, int]:
    """(first token, one behind the last) of a document of a file without gaps."""
    first, last = int(reader.documents[document]), int(reader.documents[document + 1])
    if first == last:
        return 0, 0
    start = int(reader.pointers[first]) // reader.dtype.itemsize
    return start, int(reader.pointers[last - 1]) // reader.dtype.itemsize + int(reader.lengths[last - 1])


def _check_ids(tokens: np.ndarray, vocab_size: int, name: str, line: int) -> None:
    if len(tokens) and (tokens.max() >= vocab_size or tokens.min() < 0):
        place = int(np.argmax((tokens >= vocab_size) | (tokens < 0)))
        raise DataError(
            f"{name}: document {line} (from 1) has the token id {tokens[place]} at place {place}, outside of the tokenizer's "
            f"{vocab_size} ids: data.tokenizer.path is not what the file was made with"
        )


class WindowWriter:
    """Writes `PREFIX.idx` for windows of some documents of a token file, and puts the file itself beside it as `PREFIX.bin`.

    It has the face of mads.data.indexed.IndexedWriter, but is told documents by their number. `how` says afterwards whether the
    `.bin` file is a hard link (the user's file, which must not be changed) or, on another file system, a copy.

    Args:
        others: files that may already be copies of the same `.bin`.
    """

    def __init__(self, prefix: str | os.PathLike, reader: IndexedReader, others: Sequence[Path] = ()):
        self.bin_path, self.idx_path = index_paths(prefix)
        self._reader, self._others = reader, others
        self._windows = np.zeros(len(reader.documents) - 1, np.int64)  # of each document
        self._lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
        self._starts: list[np.ndarray] = [np.zeros(0, np.int64)]
        self.documents = self.sequences = self.tokens = 0
        self.how = ""

    def add(self, document: int, lengths: np.ndarray) -> None:
        """Take a document, cut into windows of `lengths`. Documents come in ascending order.

        Raises:
            ValueError: lengths that do not add up to the document's tokens.
        """
        start, end = document_span(self._reader, document)
        if int(lengths.sum()) != end - start or (lengths < 1).any():
            raise ValueError(f"document {document} of {end - start} tokens cannot be cut into {int(lengths.sum())}")
        self._windows[document] = len(lengths)
        self._lengths.append(lengths)
        self._starts.append(start + np.cumsum(lengths) - lengths)
        self.documents += 1
        self.sequences += len(lengths)
        self.tokens += end - start

    def close(self) -> None:
        """Publish both files. A part without a document gets empty ones."""
        lengths, starts = np.concatenate(self._lengths), np.concatenate(self._starts)
        documents = np.concatenate([[0], np.cumsum(self._windows if self.sequences else self._windows[:0])])
        temporary = self.idx_path.with_name(self.idx_path.name + ".tmp")
        write_index(temporary, self._reader.dtype, lengths, starts, documents)
        self.bin_path.unlink(missing_ok=True)
        if self.sequences:
            self.how = _link_or_copy([self._reader.bin_path, *self._others], self.bin_path)
        else:
            self.bin_path.touch()
        os.replace(temporary, self.idx_path)

    def __enter__(self) -> WindowWriter:
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is None:
            self.close()


def _link_or_copy(sources: Sequence[Path], target: Path) -> str:
    for source in sources:
        try:
            os.link(os.path.realpath(source), target)
            return "linked"
        except OSError:  # another file system, or one without links
            continue
    shutil.copyfile(sources[0], target)
    return "copied"
