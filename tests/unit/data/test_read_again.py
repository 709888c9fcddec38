"""Attribute fields of every format, and chosen documents read again without looking at the others."""

import gzip
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mads.data.documents import JsonlSource, Wanted
from mads.data.files import FilesSource
from mads.data.rejects import Rejects
from mads.data.schema import DataError

VALUES = [0.5, 3, True, "a word", -2, 5.0, "ä", False]


def rows(count=200):
    return [{"text": f"text {i} " + "x" * (i % 50), "domain": "d", "value": VALUES[i % 8], "count": i} for i in range(count)]


def write(path, found, kind):
    """Arrow columns have one type: the value is the float of the row's count."""
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in found).encode()))
    else:
        table = pa.Table.from_pylist([row | {"value": row["count"] / 4} for row in found])
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=30)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=30)
    return path


KINDS = ("jsonl", "jsonl.gz", "parquet", "arrow")


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_the_values_of_the_record(tmp_path, kind):
    found = rows()
    path, rejects = write(tmp_path / f"in.{kind}", found, kind), Rejects()
    source = FilesSource([str(path)], attribute_fields=["count", "value"])
    documents = list(source.documents(rejects))
    expected = [{"count": r["count"], "value": r["value"] if "json" in kind else r["count"] / 4} for r in found]
    assert rejects.total == 0 and [d.fields for d in documents] == expected
    assert [[type(v) for v in d.fields.values()] for d in documents] == [[type(v) for v in e.values()] for e in expected]
    assert source.describe(hashed=False)["attribute_fields"] == ["count", "value"]
    assert "sha256" in source.describe()["files"][0] and "sha256" not in source.describe(hashed=False)["files"][0]


def check_chosen_documents(kind):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("mads.data.documents._MARK_BYTES", 1000)
        _check_chosen_documents(Path(folder), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_documents_are_those_of_the_first_pass(kind):
    check_chosen_documents(kind)


def _check_chosen_documents(tmp_path, kind):
    path = write(tmp_path / f"in.{kind}", rows(), kind)
    if kind == "jsonl":  # what is no document has a line all the same
        path.write_text(path.read_text().replace('{"text": "text 7 ', 'broken {"text": "text 7 '))
    source, marks = FilesSource([str(path)], attribute_fields=["count"]), []
    documents = list(source.read(0, Rejects(), marks=marks))
    assert bool(marks) == (kind == "jsonl")
    for chosen in ([0], [3, 4, 5], [0, 77, 150, 198], list(range(120, 160)), []):
        lines = np.array([documents[i].line for i in chosen], dtype=np.int64)
        rejects = Rejects()
        again = list(source.read(0, rejects, Wanted(np.array(chosen, dtype=np.int64), lines, marks)))
        assert again == [documents[i] for i in chosen] and rejects.total == 0
    if marks:
        late = Wanted(np.array([150]), np.array([documents[150].line]), marks)
        assert late.start[0] > 100 and path.read_bytes()[late.start[1] :].startswith(b'{"text"')


def test_lines_before_the_first_chosen_one_are_not_parsed(tmp_path, monkeypatch):
    path = write(tmp_path / "in.jsonl", rows(), "jsonl")
    source = JsonlSource([str(path)])
    parsed = []
    real = json.loads
    monkeypatch.setattr("mads.data.documents.json.loads", lambda text: parsed.append(1) or real(text))
    (document,) = source.read(0, Rejects(), Wanted(np.array([150]), np.array([151]), []))
    assert document.line == 151 and len(parsed) == 1


@pytest.mark.parametrize(
    "value, shown",
    [
        (None, "null"),
        ([1], "a list"),
        ({"a": 1}, "a dict"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1 << 70, "11805916207"),
    ],
)
def test_other_values_are_rejected_with_the_field(tmp_path, value, shown):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"text": "t", "domain": "d", "value": value}) + "\n")
    rejects = Rejects()
    assert list(JsonlSource([str(path)], attribute_fields=["value"]).documents(rejects)) == []
    ((reason, _, line, detail),) = rejects.entries
    assert (reason, line) == ("wrong type", 1) and "'value'" in detail and shown in detail


def test_columns_with_nulls_nan_lists_and_other_types(tmp_path):
    columns = {"text": ["a", "b", "c"], "domain": ["d"] * 3, "score": [1.0, None, float("nan")], "list": [[1], [2], [3]]}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    rejects = Rejects()
    (document,) = FilesSource([str(tmp_path)], attribute_fields=["score"]).documents(rejects)
    assert document.fields == {"score": 1.0} and rejects.counts == {"wrong type": 2}
    rejects = Rejects()
    assert list(FilesSource([str(tmp_path)], attribute_fields=["list"]).documents(rejects)) == []
    assert rejects.counts == {"wrong type": 3} and "not of strings, numbers or booleans" in rejects.entries[0][3]
    rejects = Rejects()
    assert list(FilesSource([str(tmp_path)], attribute_fields=["none"]).documents(rejects)) == []
    assert rejects.counts == {"missing field": 3}


@pytest.mark.parametrize("kind", ["dictionary", "half", "int8", "uint64", "bool", "binary"])
def test_every_kind_of_arrow_value(tmp_path, kind):
    values = {
        "dictionary": pa.array(["x", "y", "x"]).dictionary_encode(),
        "half": pa.array(np.array([0.5, 1.5, 2.0], np.float16)),
        "int8": pa.array([1, -2, 3], pa.int8()),
        "uint64": pa.array([1, 2, (1 << 64) - 1], pa.uint64()),
        "bool": pa.array([True, False, True]),
        "binary": pa.array([b"x", b"\xff", b"z"]),
    }[kind]
    table = pa.table({"text": ["a", "b", "c"], "domain": ["d"] * 3, "value": values})
    with pa.OSFile(str(tmp_path / "in.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    rejects = Rejects()
    found = [d.fields["value"] for d in FilesSource([str(tmp_path)], attribute_fields=["value"]).documents(rejects)]
    expected = {
        "dictionary": ["x", "y", "x"],
        "half": [0.5, 1.5, 2.0],
        "int8": [1, -2, 3],
        "uint64": [1, 2],
        "bool": [True, False, True],
        "binary": ["x", "z"],
    }[kind]
    assert found == expected and [type(v) for v in found] == [type(v) for v in expected]
    assert rejects.counts == {"uint64": {"wrong type": 1}, "binary": {"invalid UTF-8": 1}}.get(kind, {})


def test_a_text_file_has_no_fields(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DataError, match=r"a.txt is a text file and has none of data.attribute_fields=\['score'\]"):
        FilesSource([str(tmp_path)], attribute_fields=["score"])
