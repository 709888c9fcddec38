"""Documents: what a preparation reads, and what it could not read.

A source yields documents in a fixed order and hands everything that it does not yield to `Rejects`: each input line or member
is either a document or an entry in the list of rejects, never neither.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mads.data.compression import COMPRESSED, DamagedStream, open_stream
from mads.data.rejects import Rejects
from mads.data.schema import DataError, sha256_of

MAX_DOCUMENT_BYTES = 1 << 26  # of a JSON line, a cell or a text file, unpacked; what is longer is rejected without being held
JSONL_ENDINGS = tuple(ending + packed for ending in (".jsonl", ".ndjson") for packed in COMPRESSED)  # what is taken from a folder
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Document:
    """One text. `origin` is a file or archive member by its relative name, `line` its 1-based position in there; `fields` are the
    record's further fields that were asked for, JSON values."""

    text: str
    domain: str
    origin: str
    line: int
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Source(Protocol):
    """Where documents come from."""

    def documents(self, rejects: Rejects) -> Iterator[Document]:
        """Yield all documents in an order that depends on the input and the settings alone."""
        ...

    def describe(self) -> dict[str, Any]:
        """Settings and provenance as JSON values, for the manifest; no absolute path."""
        ...


def without_duplicates(documents: Iterable[Document], rejects: Rejects) -> Iterator[Document]:
    """Pass on the first of several documents with exactly the same text; the others are rejected as "duplicate"."""
    seen: dict[bytes, tuple[str, int]] = {}
    for document in documents:
        digest = hashlib.blake2b(document.text.encode("utf-8"), digest_size=16).digest()
        first = seen.setdefault(digest, (document.origin, document.line))
        if first == (document.origin, document.line):
            yield document
        else:
            rejects.add("duplicate", document.origin, document.line, f"same text as {first[0]}:{first[1]}")


class LineError(Exception):
    """A line that is no JSON object: `reason` is the kind, `detail` the specifics."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError("invalid UTF-8", f"byte {error.start}: {error.reason}") from error


def decoded(raw: bytes, what: str) -> str:
    """A document's bytes as text; it holds something besides white space. `what` names them in an error.

    Raises:
        LineError: if they are longer than MAX_DOCUMENT_BYTES, no UTF-8, or empty.
    """
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise LineError("document too long", f"{what} has over {MAX_DOCUMENT_BYTES} bytes")
    text = _utf8(raw)
    if not text.strip():
        raise LineError("empty text", what)
    return text


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of one line of UTF-8.

    Raises:
        LineError: whatever else the bytes are; no other exception.
    """
    text = _utf8(raw)
    if not text.strip():
        raise LineError("blank line")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise LineError("malformed JSON", "nested too deeply") from error
    except ValueError as error:  # also integers with more digits than Python converts
        raise LineError("malformed JSON", str(error)) from error
    if not isinstance(value, dict):
        raise LineError("not an object", f"a {type(value).__name__}")
    return value


def text_of(record: dict[str, Any], field: str) -> str:
    """The string under `field`; it holds something besides white space and can be written as UTF-8.

    Raises:
        LineError: if it is missing, of another type, empty, or holds half a surrogate pair (JSON may escape one).
    """
    if field not in record:
        raise LineError("missing field", f"{field!r}, the line has {sorted(record)}")
    value = record[field]
    if not isinstance(value, str):
        raise LineError("wrong type", f"{field!r} is a {type(value).__name__}, not a string")
    if not value.strip():
        raise LineError("empty text", f"{field!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LineError("invalid Unicode", f"{field!r} has a lone surrogate at character {error.start}") from error
    return value


def find_files(paths: Sequence[str], suffixes: tuple[str, ...] = JSONL_ENDINGS) -> list[tuple[str, str]]:
    """(name, path) of every file behind files, folders (searched to the bottom for `suffixes`) and globs, each file once,
    sorted by path. Names are relative to the deepest folder that holds all of them, so they do not tell where the data lies.

    Raises:
        DataError: for a path or pattern that matches no file.
    """
    found: set[str] = set()
    for pattern in paths:
        matches = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        files = [m for m in matches if os.path.isfile(m)]
        for folder in (m for m in matches if os.path.isdir(m)):
            files += [str(p) for p in Path(folder).rglob("*") if p.is_file() and p.name.endswith(suffixes)]
        if not files:
            raise DataError(
                f"no file matches {pattern!r}; give a file, a glob, or a folder that holds {', '.join('*' + s for s in suffixes)}"
            )
        found.update(os.path.abspath(f) for f in files)
    if not found:
        raise DataError("no path was given to read from; set data.paths to files, folders or globs")
    base = os.path.commonpath([os.path.dirname(f) for f in found])
    return [(Path(os.path.relpath(f, base)).as_posix(), f) for f in sorted(found)]


def describe_files(files: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each (name, path): an edited file is another source even if its size is the same."""
    return [{"name": name, "bytes": os.path.getsize(path), "sha256": sha256_of(path)} for name, path in files]


def without_mark(raw: bytes) -> bytes:
    """The first bytes of a file without a UTF-8 byte order mark."""
    return raw.removeprefix(_BOM)


def read_lines(path: str, name: str, rejects: Rejects, max_line_bytes: int = MAX_DOCUMENT_BYTES) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes without the line end) of a plain or compressed file, read as a stream.

    Lines over `max_line_bytes` and the place where a compressed stream breaks off become rejects; what came before stays.

    Raises:
        DataError: if the file cannot be opened or read at all.
    """
    number = 0
    try:
        with open_stream(path) as stream:
            while raw := stream.readline(max_line_bytes):
                number += 1
                if number == 1:
                    raw = without_mark(raw)
                if len(raw) == max_line_bytes and not raw.endswith(b"\n"):
                    rejects.add("line too long", name, number, f"over {max_line_bytes} bytes")
                    while raw and not raw.endswith(b"\n"):
                        raw = stream.readline(max_line_bytes)
                    continue
                yield number, raw.rstrip(b"\r\n")
    except DamagedStream as error:
        rejects.add(f"damaged {error.codec}", name, number + 1, error.detail)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error


def read_jsonl(path: str, name: str, fields: Sequence[str], rejects: Rejects) -> Iterator[tuple[int, list[str]]]:
    """(line number from 1, the strings under `fields`) of every line that has them; all other lines become rejects.

    Raises:
        DataError: if the file cannot be opened or read at all.
    """
    for line, raw in read_lines(path, name, rejects):
        try:
            record = parse_object(raw)
            texts = [text_of(record, field) for field in fields]
        except LineError as error:
            rejects.add(error.reason, name, line, error.detail)
        else:
            yield line, texts


def domain_of_file(name: str) -> str:
    """The file's name without folder and extensions."""
    return os.path.basename(name).split(".")[0] or name


class JsonlSource:
    """Documents from JSON lines, one object a line.

    Args:
        paths: files, folders or globs; plain, gzip, Zstandard or xz, recognised by name or by content.
        text_field: name of the field that holds the text.
        domain_field: name of the field that holds the domain; None takes the file's name without its extensions.

    Raises:
        DataError: if a path matches no file.
    """

    def __init__(self, paths: Sequence[str], text_field: str = "text", domain_field: str | None = "domain"):
        self.files = find_files([paths] if isinstance(paths, str) else list(paths))
        self.text_field = text_field
        self.domain_field = domain_field

    def documents(self, rejects: Rejects) -> Iterator[Document]:
        fields = [self.text_field] + ([] if self.domain_field is None else [self.domain_field])
        for name, path in self.files:
            for line, texts in read_jsonl(path, name, fields, rejects):
                yield Document(texts[0], texts[1] if len(texts) > 1 else domain_of_file(name), name, line)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "jsonl",
            "files": describe_files(self.files),
            "text_field": self.text_field,
            "domain_field": self.domain_field,
        }
