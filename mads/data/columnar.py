"""Rows of Parquet and Arrow IPC files (file and stream format) as strings and plain values, a batch at a time.

Only the named columns are read. Held in memory: a slice of a Parquet row group of about _BATCH_BYTES (at least one row and one
page of the file), or one Arrow record batch, as its writer cut it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from mads.data.documents import LineError, Rejects, at_lines, checked_value, decoded
from mads.data.schema import DataError

_BATCH_BYTES = 1 << 23
_BATCH_ROWS = 1024
_ARROW_FILE_MAGIC = b"ARROW1"
_ARROW_FILE_START = 8  # the magic number, padded
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # Arrow columnar format, "IPC streaming format"
_DAMAGE = (
    pa.ArrowException,
    OSError,
    ValueError,
    OverflowError,
    LookupError,
    TypeError,
    MemoryError,
)  # what pyarrow raises for bad bytes
_BINARY = (
    (pa.types.is_string, pa.binary()),
    (pa.types.is_large_string, pa.large_binary()),
    (pa.types.is_string_view, pa.binary_view()),
)
_TEXT_TYPES = (
    *(is_kind for is_kind, _ in _BINARY),
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_null,
)
_VALUE_TYPES = (*_TEXT_TYPES, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)

Row = tuple[int, list[Any]]


def read_parquet(
    path: str,
    name: str,
    columns: Sequence[str],
    rejects: Rejects,
    values: Sequence[str] = (),
    lines: Sequence[int] | None = None,
) -> Iterator[Row]:
    """(row number from 1, its strings in the order of `columns`, then strings, numbers and booleans in the order of `values`).

    All other rows become rejects. With `lines`, ascending row numbers, only those rows; row groups outside are not read.

    A row group that does not decode loses its remaining rows, which are counted; the next row group is read.

    Raises:
        DataError: if the file cannot be opened or read at all.
    """
    try:
        with open(path, "rb") as plain:
            file = pq.ParquetFile(plain)
            problem = _unusable(file.schema_arrow, columns, values)
            if problem is not None:
                _reject_rows(rejects, problem, name, 0, file.metadata.num_rows)
                return
            # pre_buffer holds whole row groups. Read as codes, one long string in many rows is not written out for each of them.
            streamed = {"pre_buffer": False, "buffer_size": 1 << 20, "read_dictionary": list(columns)}
            file = pq.ParquetFile(plain, metadata=file.metadata, **streamed)
            bounds = (1, file.metadata.num_rows) if lines is None else (lines[0], lines[-1]) if len(lines) else (1, 0)
            yield from at_lines(_row_groups(file, name, columns, rejects, values, bounds), lines)
    except _DAMAGE as error:
        _raise_if_disk(error, name)
        rejects.add("damaged parquet", name, 1, f"nothing was read: {error}")


def _row_groups(file: pq.ParquetFile, name: str, columns, rejects: Rejects, values, bounds: tuple[int, int]) -> Iterator[Row]:
    first, names = 0, list(dict.fromkeys([*columns, *values]))
    for group in range(file.num_row_groups):
        record = file.metadata.row_group(group)
        rows, done, trouble = max(0, record.num_rows), 0, "it ended early"
        if first + rows < bounds[0] or first >= bounds[1]:
            first += rows
            continue
        try:
            # The sizes of single columns would be closer, but pyarrow aborts the process on damaged metadata of a column.
            batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, record.total_byte_size)))
            for batch in file.iter_batches(batch_rows, row_groups=[group], columns=names, use_threads=False):
                if batch.num_rows > rows - done:
                    raise pa.ArrowInvalid(f"it holds more than the {rows} rows that it should")
                cells = [_as_bytes(batch.column(column)) for column in (*columns, *values)]
                yield from _rows(cells, first + done, name, columns, rejects, values)
                done += batch.num_rows
        except _DAMAGE as error:
            _raise_if_disk(error, name)
            trouble = str(error)
        if done < rows:
            _reject_rows(rejects, LineError("damaged parquet", f"row group {group}: {trouble}"), name, first + done, rows - done)
        first += rows
    if first != file.metadata.num_rows:
        lost = max(1, file.metadata.num_rows - first)
        detail = f"the row groups have {first} rows, the file should have {file.metadata.num_rows}"
        rejects.add("damaged parquet", name, first + 1, detail, lost)


def read_arrow(
    path: str,
    name: str,
    columns: Sequence[str],
    rejects: Rejects,
    values: Sequence[str] = (),
    lines: Sequence[int] | None = None,
) -> Iterator[Row]:
    """As read_parquet, for Arrow IPC. A record batch that does not decode ends the file: how many rows are lost is not known.

    Raises:
        DataError: if the file cannot be opened or read at all.
    """
    yield from at_lines(_arrow_rows(path, name, columns, rejects, values, 1 if not lines else lines[0]), lines)


def _arrow_rows(path: str, name: str, columns, rejects: Rejects, values, first: int) -> Iterator[Row]:
    """All rows but those of record batches that end before row `first`."""
    done, problem = 0, None
    try:
        for schema, batch in _record_batches(path, [*columns, *values]):
            problem = _unusable(schema, columns, values)
            if problem is None and done + batch.num_rows >= first:
                cells = [_as_bytes(batch.column(column)) for column in (*columns, *values)]
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield from _rows([c.slice(start, _BATCH_ROWS) for c in cells], done + start, name, columns, rejects, values)
            done += batch.num_rows
    except _DAMAGE as error:
        _raise_if_disk(error, name)
        rejects.add("damaged arrow", name, done + 1, f"nothing was read from here on: {error}")
    if problem is not None:
        _reject_rows(rejects, problem, name, 0, done)


def _record_batches(path: str, columns: Sequence[str]) -> Iterator[tuple[pa.Schema, pa.RecordBatch]]:
    """(schema of the file, record batch with those of `columns` that are in there; with all if none is)."""
    with open(path, "rb") as plain:
        is_file = plain.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        plain.seek(0)
        opened = pa.ipc.open_file if is_file else pa.ipc.open_stream
        schema = opened(plain).schema
        fields = [i for i, name in enumerate(schema.names) if name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        expected = pa.ipc.open_file(plain).num_record_batches if is_file else None
        # A file is a stream between a magic number and a footer; read so, a batch that the footer leaves out is noticed.
        plain.seek(_ARROW_FILE_START if is_file else 0)
        count = 0
        for batch in pa.ipc.open_stream(plain, options=options):
            yield schema, batch
            count += 1
        if not is_file:
            _check_end(plain)
        elif count != expected:
            raise pa.ArrowInvalid(f"{count} record batches were found, the footer lists {expected}")


def _check_end(stream: BinaryIO) -> None:
    """A stream that was cut between two record batches reads like a whole one, and a second stream behind it is passed over."""
    at = stream.tell()
    if stream.read(1):
        raise pa.ArrowInvalid("there are bytes after the end of the stream")
    stream.seek(max(0, at - len(_STREAM_END)))
    if stream.read() != _STREAM_END:
        raise pa.ArrowInvalid("the stream has no end marker: it may have been cut off")


def _unusable(schema: pa.Schema, columns: Sequence[str], values: Sequence[str]) -> LineError | None:
    """Why no row of such a file can be read."""
    for place, column in enumerate((*columns, *values)):
        found = schema.get_all_field_indices(column)
        if not found:
            return LineError("missing field", f"{column!r}, the columns are {schema.names}")
        if len(found) > 1:
            return LineError("wrong type", f"{column!r} names {len(found)} columns")
        kind = schema.field(found[0]).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        tests, what = (_TEXT_TYPES, "strings") if place < len(columns) else (_VALUE_TYPES, "strings, numbers or booleans")
        if not any(test(value) for test in tests):
            return LineError("wrong type", f"{column!r} is a column of {kind}, not of {what}")
    return None


def _as_bytes(array: pa.Array) -> pa.Array:
    """The same values without the promise that they are UTF-8, which is checked row by row.

    Raises:
        pa.ArrowInvalid: offsets or codes point outside of the data.
    """
    if pa.types.is_dictionary(array.type):
        array = pa.DictionaryArray.from_arrays(array.indices, _as_bytes(array.dictionary), safe=False)
    else:
        for is_kind, plain in _BINARY:
            if is_kind(array.type):
                array = array.view(plain)
    array.validate(full=True)
    return array


def _values(array: pa.Array) -> list[bytes | None]:
    if not pa.types.is_dictionary(array.type):
        return array.to_pylist()
    codes = array.indices.to_pylist()
    used = {code: array.dictionary[code].as_py() for code in set(codes) if code is not None}
    return [used.get(code) for code in codes]


def _rows(cells: Sequence[pa.Array], first: int, name: str, columns, rejects: Rejects, values) -> Iterator[Row]:
    for row, found in enumerate(zip(*map(_values, cells), strict=True), first + 1):
        try:
            texts = [_text(value, column) for value, column in zip(found, columns)]
            others = [_value(value, column) for value, column in zip(found[len(columns) :], values)]
        except LineError as error:
            rejects.add(error.reason, name, row, error.detail)
        else:
            yield row, texts + others


def _text(value: bytes | None, column: str) -> str:
    if value is None:
        raise LineError("wrong type", f"{column!r} is null, not a string")
    return decoded(value, repr(column))


def _value(value: Any, column: str) -> Any:
    if isinstance(value, bytes):
        return decoded(value, repr(column))
    # Some versions of pyarrow give half floats as NumPy scalars.
    return checked_value(value.item() if hasattr(value, "item") else value, column)


def _reject_rows(rejects: Rejects, problem: LineError, name: str, first: int, rows: int) -> None:
    """One entry for `rows` rows after the first `first`."""
    if rows > 0:
        rejects.add(problem.reason, name, first + 1, problem.detail, rows)


def _raise_if_disk(error: Exception, name: str) -> None:
    """An error of the operating system has an errno; those of pyarrow about the content have none."""
    if isinstance(error, OSError) and error.errno is not None:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error
