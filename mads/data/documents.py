"""Documents: what a preparation reads, and what it could not read.

A source yields documents in a fixed order and hands everything that it does not yield to `Rejects`: each input line or member
is either a document or an entry in the list of rejects, never neither.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np

from mads.data.compression import COMPRESSED, DamagedStream, open_stream
from mads.data.rejects import Rejects
from mads.data.schema import DataError, sha256_of

MAX_DOCUMENT_BYTES = 1 << 26  # of a JSON line, a cell or a text file, unpacked; what is longer is rejected without being held
JSONL_ENDINGS = tuple(ending + packed for ending in (".jsonl", ".ndjson") for packed in COMPRESSED)  # what is taken from a folder
_BOM = b"\xef\xbb\xbf"
_MARK_BYTES = 1 << 24  # of a plain file between two places from which reading can go on
_LARGEST_INTEGER = 1 << 63


@dataclass(frozen=True)
class Document:
    """One text. `origin` is a file or archive member by its relative name, `line` its 1-based position in there; `fields` are the
    record's further fields that were asked for, JSON values."""

    text: str
    domain: str
    origin: str
    line: int
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)


Marks = list[tuple[int, int]]  # (lines before, byte offset) of places in a plain file


@dataclass(frozen=True)
class Wanted:
    """Documents of one unit of a source that are read again.

    ordinals: int64 [n], ascending: which of the unit's documents, from 0
    lines: int64 [n], their lines
    marks: where reading may begin; what the first pass recorded
    """

    ordinals: np.ndarray
    lines: np.ndarray
    marks: Marks

    @property
    def start(self) -> tuple[int, int]:
        """(lines before, byte offset) of the last mark before the first document."""
        before = [mark for mark in self.marks if mark[0] < self.lines[0]] if len(self.lines) else []
        return max(before, default=(0, 0))


class Source(Protocol):
    """Where documents come from: one or more units, which can be read independently of each other.

    files: (name, path) of each unit; empty for a source that reads no files of the user and is one unit
    attribute_fields: keys of each document's `fields`
    """

    files: Sequence[tuple[str, str]]
    attribute_fields: tuple[str, ...]

    def read(self, unit: int, rejects: Rejects, wanted: Wanted | None = None, marks: Marks | None = None) -> Iterator[Document]:
        """Yield a unit's documents in an order that depends on the input and the settings alone.

        Args:
            wanted: only these; what else is in the unit need not be looked at
            marks: receives places for a later `wanted`
        """
        ...

    def describe(self, hashed: bool = True) -> dict[str, Any]:
        """Settings and provenance as JSON values, for the manifest; no absolute path. Without `hashed` the files' "sha256" are
        left out, which saves reading them."""
        ...


def unit_count(source: Source) -> int:
    """Number of units of a source."""
    return max(1, len(source.files))


Row = TypeVar("Row", bound=tuple)


def at_lines(rows: Iterator[Row], lines: Sequence[int] | None) -> Iterator[Row]:
    """Those rows whose line, their first item, is one of the ascending `lines`; all of them if that is None. Nothing is read
    behind the last."""
    if lines is None:
        yield from rows
        return
    wanted = iter(lines)
    line = next(wanted, None)
    while line is not None and (row := next(rows, None)) is not None:
        while line is not None and line < row[0]:
            line = next(wanted, None)
        if line == row[0]:
            yield row
            line = next(wanted, None)


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


def value_of(record: dict[str, Any], field: str) -> Any:
    """The string, number or boolean under `field`; a string is as for `text_of`, a number is finite and below 2**63.

    Raises:
        LineError: anything else.
    """
    if isinstance(record.get(field), str) or field not in record:
        return text_of(record, field)
    return checked_value(record[field], field)


def checked_value(value: Any, field: str) -> Any:
    """A number or boolean as it is.

    Raises:
        LineError: if it is neither, not finite, or too large.
    """
    if (
        isinstance(value, int)
        and -_LARGEST_INTEGER <= value < _LARGEST_INTEGER
        or isinstance(value, float)
        and math.isfinite(value)
    ):
        return value
    shown = "null" if value is None else f"{value}"[:40] if isinstance(value, (int, float)) else f"a {type(value).__name__}"
    raise LineError("wrong type", f"{field!r} is {shown}, not a string, a finite number or a boolean")


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


def describe_files(files: Sequence[tuple[str, str]], hashed: bool = True) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each (name, path): an edited file is another source even if its size is the same."""
    described = [{"name": name, "bytes": os.path.getsize(path)} for name, path in files]
    return [d | {"sha256": sha256_of(path)} for d, (_, path) in zip(described, files)] if hashed else described


def without_mark(raw: bytes) -> bytes:
    """The first bytes of a file without a UTF-8 byte order mark."""
    return raw.removeprefix(_BOM)


def read_lines(
    path: str,
    name: str,
    rejects: Rejects,
    max_line_bytes: int = MAX_DOCUMENT_BYTES,
    start: tuple[int, int] = (0, 0),
    marks: Marks | None = None,
) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes without the line end) of a plain or compressed file, read as a stream.

    Lines without a character, lines over `max_line_bytes` and the place where a compressed stream breaks off become rejects; what
    came before stays.

    Args:
        start: one of `marks`
        marks: receives a place every _MARK_BYTES of a plain file

    Raises:
        DataError: if the file cannot be opened or read at all.
    """
    number, offset = start
    mark = offset + _MARK_BYTES
    try:
        with open_stream(path) as stream:
            if offset:
                stream.seek(offset)
            if marks is None or not isinstance(stream.raw, io.FileIO):
                mark = math.inf
            while raw := stream.readline(max_line_bytes):
                if offset >= mark:
                    marks.append((number, offset))
                    mark = offset + _MARK_BYTES
                number += 1
                offset += len(raw)
                if raw == b"\n":
                    rejects.add("blank line", name, number)
                    more = _skip_blank_lines(stream)
                    if more:
                        rejects.add("blank line", name, number + 1, count=more)
                        number, offset = number + more, offset + more
                    continue
                if number == 1:
                    raw = without_mark(raw)
                if len(raw) == max_line_bytes and not raw.endswith(b"\n"):
                    rejects.add("line too long", name, number, f"over {max_line_bytes} bytes")
                    while raw and not raw.endswith(b"\n"):
                        raw = stream.readline(max_line_bytes)
                        offset += len(raw)
                    continue
                yield number, raw.rstrip(b"\r\n")
    except DamagedStream as error:
        rejects.add(f"damaged {error.codec}", name, number + 1, error.detail)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error


def _skip_blank_lines(stream: BinaryIO) -> int:
    """Take the line ends that are next in the buffer, and tell how many; a line at a time, a bomb of them would take hours."""
    held = stream.peek(1)
    count = len(held) - len(held.lstrip(b"\n"))
    stream.read(count)
    return count


def read_jsonl(
    path: str,
    name: str,
    fields: Sequence[str],
    rejects: Rejects,
    values: Sequence[str] = (),
    wanted: Wanted | None = None,
    marks: Marks | None = None,
) -> Iterator[tuple[int, list[Any]]]:
    """(line number from 1, the strings under `fields` and then the `value_of` each of `values`) of every line that has them, or
    of every such line among those `wanted`; all other lines become rejects.

    Raises:
        DataError: if the file cannot be opened or read at all.
    """
    lines = read_lines(path, name, rejects, start=wanted.start if wanted else (0, 0), marks=marks)
    for line, raw in at_lines(lines, wanted.lines.tolist() if wanted else None):
        try:
            record = parse_object(raw)
            found = [text_of(record, field) for field in fields] + [value_of(record, field) for field in values]
        except LineError as error:
            rejects.add(error.reason, name, line, error.detail)
        else:
            yield line, found


def domain_of_file(name: str) -> str:
    """The file's name without folder and extensions."""
    return os.path.basename(name).split(".")[0] or name


def document_of(found: Sequence[Any], name: str, line: int, has_domain: bool, attribute_fields: Sequence[str]) -> Document:
    """A document from the values of its text, domain (if it has one) and attribute fields, in this order."""
    fields = dict(zip(attribute_fields, found[1 + has_domain :]))
    return Document(found[0], found[1] if has_domain else domain_of_file(name), name, line, fields)


class JsonlSource:
    """Documents from JSON lines, one object a line.

    Args:
        paths: files, folders or globs; plain, gzip, Zstandard or xz, recognised by name or by content.
        text_field: name of the field that holds the text.
        domain_field: name of the field that holds the domain; None takes the file's name without its extensions.
        attribute_fields: further fields that labellers read: strings, finite numbers or booleans.

    Raises:
        DataError: if a path matches no file.
    """

    def __init__(
        self,
        paths: Sequence[str],
        text_field: str = "text",
        domain_field: str | None = "domain",
        attribute_fields: Sequence[str] = (),
    ):
        self.files = find_files([paths] if isinstance(paths, str) else list(paths))
        self.text_field = text_field
        self.domain_field = domain_field
        self.attribute_fields = tuple(attribute_fields)

    def read(self, unit: int, rejects: Rejects, wanted: Wanted | None = None, marks: Marks | None = None) -> Iterator[Document]:
        """The documents of one file."""
        name, path = self.files[unit]
        fields = [self.text_field] + ([] if self.domain_field is None else [self.domain_field])
        for line, found in read_jsonl(path, name, fields, rejects, self.attribute_fields, wanted, marks):
            yield document_of(found, name, line, self.domain_field is not None, self.attribute_fields)

    def documents(self, rejects: Rejects) -> Iterator[Document]:
        for unit in range(len(self.files)):
            yield from self.read(unit, rejects)

    def describe(self, hashed: bool = True) -> dict[str, Any]:
        return {
            "kind": "jsonl",
            "files": describe_files(self.files, hashed),
            "text_field": self.text_field,
            "domain_field": self.domain_field,
            "attribute_fields": list(self.attribute_fields),
        }
