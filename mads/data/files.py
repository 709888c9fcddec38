"""Documents from files of several formats: JSON lines, Parquet, Arrow IPC and folders of plain text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from mads.data.columnar import read_arrow, read_parquet
from mads.data.compression import COMPRESSED, DamagedStream, open_stream
from mads.data.documents import (
    JSONL_ENDINGS,
    MAX_DOCUMENT_BYTES,
    Document,
    LineError,
    Marks,
    Rejects,
    Wanted,
    decoded,
    describe_files,
    document_of,
    find_files,
    read_jsonl,
    without_mark,
)
from mads.data.schema import DataError

ENDINGS = {
    "jsonl": JSONL_ENDINGS,
    "parquet": (".parquet",),
    "arrow": (".arrow", ".arrows", ".feather", ".ipc"),
    "text": tuple(ending + packed for ending in (".txt", ".text", ".md") for packed in COMPRESSED),
}
_READERS = {"parquet": read_parquet, "arrow": read_arrow}


class FilesSource:
    """Documents from files, each read as a stream.

    JSON lines and text may be compressed (gzip, Zstandard, xz; by name or by content); Parquet and Arrow files (Arrow in the file
    or the stream format) compress inside. A text file is one document; its domain is its folder: the first one below the folder
    that holds all files, or that folder itself. What does not become a document is rejected with its line or row, as is a
    document over MAX_DOCUMENT_BYTES.

    Args:
        paths: files, folders (searched for the endings of `format`) or globs.
        format: jsonl, parquet, arrow or text for all files; "auto" decides by each file's ending.
        text_field: name of the field or column that holds the text.
        domain_field: name of the field or column that holds the domain; None takes the file's name without its extensions.
        attribute_fields: further fields or columns that labellers read: strings, finite numbers or booleans.

    Raises:
        DataError: an unknown format, a path that matches no file, a file whose ending tells no format, or attribute fields of a
            text file, which has none.
    """

    def __init__(
        self,
        paths: Sequence[str],
        format: str = "auto",
        text_field: str = "text",
        domain_field: str | None = "domain",
        attribute_fields: Sequence[str] = (),
    ):
        if format != "auto" and format not in ENDINGS:
            raise DataError(f"unknown format {format!r} of files; use auto, {', '.join(ENDINGS)} (data.format)")
        endings = tuple(e for kind, known in ENDINGS.items() if format in ("auto", kind) for e in known)
        self.files = find_files([paths] if isinstance(paths, str) else list(paths), endings)
        self.formats = [_format_of(name) if format == "auto" else format for name, _ in self.files]
        self.text_field = text_field
        self.domain_field = domain_field
        self.attribute_fields = tuple(attribute_fields)
        if attribute_fields and "text" in self.formats:
            name = self.files[self.formats.index("text")][0]
            raise DataError(
                f"{name} is a text file and has none of data.attribute_fields={list(attribute_fields)}; give JSON lines, Parquet "
                "or Arrow, or ask for no attribute fields"
            )

    def read(self, unit: int, rejects: Rejects, wanted: Wanted | None = None, marks: Marks | None = None) -> Iterator[Document]:
        """The documents of one file."""
        (name, path), kind = self.files[unit], self.formats[unit]
        fields = [self.text_field] + ([] if self.domain_field is None else [self.domain_field])
        if kind == "text":
            yield from read_text(path, name, rejects)
            return
        if kind == "jsonl":
            rows = read_jsonl(path, name, fields, rejects, self.attribute_fields, wanted, marks)
        else:
            lines = None if wanted is None else wanted.lines.tolist()
            rows = _READERS[kind](path, name, fields, rejects, self.attribute_fields, lines)
        for line, found in rows:
            yield document_of(found, name, line, self.domain_field is not None, self.attribute_fields)

    def documents(self, rejects: Rejects) -> Iterator[Document]:
        for unit in range(len(self.files)):
            yield from self.read(unit, rejects)

    def describe(self, hashed: bool = True) -> dict[str, Any]:
        files = [{"format": kind, **record} for kind, record in zip(self.formats, describe_files(self.files, hashed))]
        settings = {"text_field": self.text_field, "domain_field": self.domain_field}
        return {"kind": "files", "files": files, **settings, "attribute_fields": list(self.attribute_fields)}


def read_text(path: str, name: str, rejects: Rejects) -> Iterator[Document]:
    """A plain or compressed text file as its one document, or a reject; a byte order mark is no part of the text.

    Raises:
        DataError: if the file cannot be opened or read at all.
    """
    folder = name.split("/")[0] if "/" in name else os.path.basename(os.path.dirname(path))
    try:
        with open_stream(path) as stream:
            text = decoded(without_mark(stream.read(MAX_DOCUMENT_BYTES + 1)), "the file")
    except DamagedStream as error:
        rejects.add(f"damaged {error.codec}", name, 1, error.detail)
    except LineError as error:
        rejects.add(error.reason, name, 1, error.detail)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error
    else:
        yield Document(text, folder or name, name, 1)


def _format_of(name: str) -> str:
    for kind, endings in ENDINGS.items():
        if name.endswith(endings):
            return kind
    known = ", ".join(e for kind in ("jsonl", "parquet", "arrow", "text") for e in ENDINGS[kind] if e.count(".") == 1)
    raise DataError(
        f"the ending of {name} tells no format; known are {known} (JSON lines and text also with "
        f"{', '.join(COMPRESSED[1:])} after it). Rename the file, or set data.format"
    )
