"""Attribute columns: one uncompressed Arrow IPC file per attribute and shard, memory-mapped at run time.

Columns: `code` uint16 (index into the schema's labels) and, for continuous attributes, `value` float32. The AttributeSchema
travels in the file's schema metadata, so a column explains itself to any Arrow reader.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mads.data.schema import AttributeSchema, DataError

_METADATA_KEY = b"mads.attribute"
MAX_LABELS = 1 << 16


@dataclass(frozen=True)
class AttributeColumn:
    """codes: uint16 [samples]; values: float32 [samples], or None for a categorical attribute. Both read-only."""

    schema: AttributeSchema
    codes: np.ndarray
    values: np.ndarray | None


def _check(where: str, schema: AttributeSchema, codes: np.ndarray, values: np.ndarray | None, samples: int) -> None:
    if len(schema.labels) > MAX_LABELS:
        raise DataError(f"{where}: {len(schema.labels)} labels; codes are uint16, so at most {MAX_LABELS}")
    if len(codes) != samples:
        raise DataError(f"{where}: {len(codes)} codes for {samples} samples")
    if samples and (int(codes.max()) >= len(schema.labels) or int(codes.min()) < 0):
        raise DataError(f"{where}: codes from {codes.min()} to {codes.max()}, but there are only {len(schema.labels)} labels")
    if schema.continuous != (values is not None):
        given = "missing" if values is None else "given"
        raise DataError(f"{where}: the schema says continuous={schema.continuous}, but values are {given}")
    if values is None:
        return
    if len(values) != samples:
        raise DataError(f"{where}: {len(values)} values for {samples} samples")
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        raise DataError(f"{where}: {int((~finite).sum())} of {samples} values are not finite, the first at sample {first}")


def write_column(
    path: str | os.PathLike,
    schema: AttributeSchema,
    codes: np.ndarray,
    values: np.ndarray | None = None,
    samples: int | None = None,
) -> None:
    """Write a column atomically. codes: integers [samples]; values: [samples] if the schema is continuous.

    Raises:
        DataError: wrong length, a code without a label, a value that is not finite, values where none belong or
            none where they do.
    """
    path, codes = Path(path), np.asarray(codes)
    values = None if values is None else np.asarray(values, dtype=np.float32)
    _check(f"attribute {schema.name!r}", schema, codes, values, len(codes) if samples is None else samples)
    arrays = {"code": pa.array(codes.astype(np.uint16))}
    if values is not None:
        arrays["value"] = pa.array(values)
    metadata = {_METADATA_KEY: json.dumps(dataclasses.asdict(schema), sort_keys=True).encode()}
    table = pa.table(arrays).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    os.replace(temporary, path)


def read_column(path: str | os.PathLike, samples: int) -> AttributeColumn:
    """Memory-map a column and check it.

    Raises:
        DataError: no Arrow file, no column of mads, another number of samples than `samples`, codes without labels, or values
            that are not finite.
    """
    path = Path(path)
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()
        table.validate(full=True)  # a length beyond the file's end would be read as memory that is not there
        schema = AttributeSchema(**json.loads(table.schema.metadata[_METADATA_KEY]))
        codes = _numpy(table, "code", pa.uint16())
        values = _numpy(table, "value", pa.float32()) if schema.continuous else None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a readable attribute column of mads ({error}); prepare the data again") from error
    _check(str(path), schema, codes, values, samples)
    return AttributeColumn(schema, codes, values)


def _numpy(table: pa.Table, name: str, kind: pa.DataType) -> np.ndarray:
    column = table.column(name)
    if column.type != kind or column.null_count:
        raise DataError(f"column {name!r} is {column.type} with {column.null_count} nulls, not {kind} without nulls")
    if column.num_chunks == 1:
        return column.chunk(0).to_numpy(zero_copy_only=True)
    return column.to_numpy() if len(column) else np.zeros(0, kind.to_pandas_dtype())
