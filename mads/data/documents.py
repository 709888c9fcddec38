"""Documents: what a preparation reads, and what it could not read.

A source yields documents in a fixed order and hands everything that it does not yield to `Rejects`: each input line or member
is either a document or an entry in the list of rejects, never neither.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mads.data.schema import DataError, sha256_of

_DETAIL_LIMIT = 200  # characters of an explanation that are kept per reject
_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")  # what is taken from a folder
_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Document:
    """One text. `origin` is a file or archive member by its relative name, `line` its 1-based position in there."""

    text: str
    domain: str
    origin: str
    line: int


class Rejects:
    """Everything that was not taken, by reason, with its place in the input."""

    def __init__(self):
        self.entries: list[tuple[str, str, int, str]] = []  # (reason, origin, line, detail)
        self._counts: Counter[str] = Counter()

    def add(self, reason: str, origin: str, line: int, detail: str = "") -> None:
        """Record one input that was not taken; `reason` is a short kind that can be counted, `detail` is specific."""
        self._counts[reason] += 1
        self.entries.append((reason, origin, line, detail[:_DETAIL_LIMIT]))

    @property
    def counts(self) -> dict[str, int]:
        return {reason: self._counts[reason] for reason in sorted(self._counts)}

    @property
    def total(self) -> int:
        return len(self.entries)

    def write(self, path: str | os.PathLike) -> None:
        """Write all entries as JSON lines {"reason", "origin", "line", "detail"}, atomically; an empty file if there are none."""
        temporary = Path(f"{os.fspath(path)}.tmp")
        with open(temporary, "w", encoding="ascii", newline="\n") as file:
            for reason, origin, line, detail in self.entries:
                file.write(json.dumps({"reason": reason, "origin": origin, "line": line, "detail": detail}) + "\n")
        os.replace(temporary, path)

    def raise_if_too_many(self, accepted: int, max_fraction: float, shown: int = 5) -> None:
        """Stop when more than `max_fraction` of accepted + rejected inputs were rejected.

        Raises:
            DataError: with the counts by reason and the first `shown` entries.
        """
        seen = accepted + self.total
        if self.total <= max_fraction * seen:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._counts.most_common())
        first = "\n".join(
            f"  {origin}:{line}: {reason}" + (f" ({detail})" if detail else "")
            for reason, origin, line, detail in self.entries[:shown]
        )
        raise DataError(
            f"{self.total} of {seen} inputs were rejected, more than the allowed {max_fraction:.1%}: {reasons}. "
            f"The first:\n{first}\n"
            "Mend the input, check data.text_field and data.domain_field, or raise data.max_rejected_fraction"
        )


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


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of one line of UTF-8.

    Raises:
        LineError: whatever else the bytes are; no other exception.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError("invalid UTF-8", f"byte {error.start}: {error.reason}") from error
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


def find_files(paths: Sequence[str], suffixes: tuple[str, ...] = _SUFFIXES) -> list[tuple[str, str]]:
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


def read_lines(path: str, name: str, rejects: Rejects, max_line_bytes: int = 1 << 26) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes without the line end) of a plain or gzip file, read as a stream.

    Lines over `max_line_bytes` and the place where a gzip stream breaks off become rejects; what came before stays.

    Raises:
        DataError: if the file cannot be opened or read at all.
    """
    number = 0
    try:
        with open(path, "rb") as plain:
            packed = path.endswith(".gz") or plain.peek(2)[:2] == _GZIP_MAGIC
            stream: BinaryIO = gzip.GzipFile(fileobj=plain) if packed else plain
            try:
                while raw := stream.readline(max_line_bytes):
                    number += 1
                    if number == 1 and raw.startswith(_BOM):
                        raw = raw[len(_BOM) :]
                    if len(raw) == max_line_bytes and not raw.endswith(b"\n"):
                        rejects.add("line too long", name, number, f"over {max_line_bytes} bytes")
                        while raw and not raw.endswith(b"\n"):
                            raw = stream.readline(max_line_bytes)
                        continue
                    yield number, raw.rstrip(b"\r\n")
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                rejects.add("damaged gzip", name, number + 1, str(error))
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error


class JsonlSource:
    """Documents from JSON lines, one object a line.

    Args:
        paths: files, folders or globs; plain or gzip, recognised by name or by content.
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
        for name, path in self.files:
            file_domain = os.path.basename(name).split(".")[0] or name
            for line, raw in read_lines(path, name, rejects):
                try:
                    record = parse_object(raw)
                    text = text_of(record, self.text_field)
                    domain = file_domain if self.domain_field is None else text_of(record, self.domain_field)
                except LineError as error:
                    rejects.add(error.reason, name, line, error.detail)
                else:
                    yield Document(text, domain, name, line)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "jsonl",
            "files": describe_files(self.files),
            "text_field": self.text_field,
            "domain_field": self.domain_field,
        }
