import json

import numpy as np
import pyarrow as pa
import pytest

from mads.data.attributes import read_column, write_column
from mads.data.schema import AttributeSchema, DataError

CATEGORICAL = AttributeSchema("domain", ("news", "code"), provenance={"labeller": "source", "version": 1})
CONTINUOUS = AttributeSchema("quality", ("low", "high"), continuous=True)


def test_column_is_a_plain_arrow_file_with_its_schema(tmp_path):
    codes, values = np.array([0, 1, 1]), np.array([0.25, 3.5, -2.0])
    write_column(tmp_path / "q.arrow", CONTINUOUS, codes, values)
    with pa.ipc.open_file(str(tmp_path / "q.arrow")) as file:  # any Arrow reader
        table = file.read_all()
    assert table.to_pydict() == {"code": [0, 1, 1], "value": [0.25, 3.5, -2.0]}
    assert json.loads(table.schema.metadata[b"mads.attribute"])["labels"] == ["low", "high"]
    column = read_column(tmp_path / "q.arrow", 3)
    assert column.schema == CONTINUOUS and column.codes.dtype == np.uint16 and column.values.dtype == np.float32
    assert column.codes.tolist() == [0, 1, 1] and column.values.tolist() == [0.25, 3.5, -2.0]
    assert not column.codes.flags.writeable


def test_column_bytes_are_deterministic_and_empty_columns_work(tmp_path):
    for name in ("a", "b"):
        write_column(tmp_path / name, CATEGORICAL, np.array([1, 0]))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_column(tmp_path / "e", CATEGORICAL, np.zeros(0, np.int64))
    assert len(read_column(tmp_path / "e", 0).codes) == 0


@pytest.mark.parametrize(
    "schema, codes, values, samples, match",
    [
        (CATEGORICAL, [0, 2], None, 2, "codes from 0 to 2"),
        (CATEGORICAL, [0, -1], None, 2, "codes from -1"),
        (CATEGORICAL, [0, 1], None, 3, "2 codes for 3 samples"),
        (CATEGORICAL, [0, 1], [0.0, 1.0], 2, "continuous=False"),
        (CONTINUOUS, [0, 1], None, 2, "values are missing"),
        (CONTINUOUS, [0, 1], [0.0, np.nan], 2, "1 of 2 values are not finite, the first at sample 1"),
        (CONTINUOUS, [0, 1], [0.0], 2, "1 values for 2 samples"),
    ],
)
def test_bad_columns_are_refused_on_writing(tmp_path, schema, codes, values, samples, match):
    with pytest.raises(DataError, match=match):
        write_column(tmp_path / "x.arrow", schema, np.array(codes), None if values is None else np.array(values), samples)
    assert list(tmp_path.iterdir()) == []


def test_bad_files_are_refused_on_reading(tmp_path):
    write_column(tmp_path / "x.arrow", CATEGORICAL, np.array([0, 1]))
    with pytest.raises(DataError, match="x.arrow.*2 codes for 5 samples"):
        read_column(tmp_path / "x.arrow", 5)
    raw = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "y.arrow").write_bytes(raw[: len(raw) // 2])
    table = pa.table({"code": pa.array([0, 1], pa.uint16())})
    with pa.ipc.new_file(str(tmp_path / "z.arrow"), table.schema) as writer:
        writer.write_table(table)  # no schema of ours
    for name in ("y", "z", "missing"):
        with pytest.raises(DataError, match=f"{name}.arrow is not a readable attribute column"):
            read_column(tmp_path / f"{name}.arrow", 2)
    metadata = {b"mads.attribute": json.dumps({"name": "domain", "labels": ["a"]}).encode()}
    table = pa.table({"code": pa.array([0, 3], pa.uint16())}).replace_schema_metadata(metadata)
    with pa.ipc.new_file(str(tmp_path / "w.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="codes from 0 to 3"):
        read_column(tmp_path / "w.arrow", 2)
