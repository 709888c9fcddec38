"""Reference tasks as rewards and evaluation read them."""

import json

import numpy as np
import pytest

from mads.data.schema import DataError
from mads.reward.reference import PARTS, ReferenceTask, load_references


class Letters:
    """A tokenizer of one token a character."""

    def encode(self, texts):
        return [np.array([ord(c) for c in text]) for text in texts]


def write(folder, task, rows):
    (folder / "references").mkdir(exist_ok=True)
    lines = [json.dumps({"id": str(i), "text": text, "part": part}) for i, (text, part) in enumerate(rows)]
    (folder / "references" / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def decoded(windows):
    return ["".join(map(chr, w)) for w in windows]


def test_examples_are_cut_into_windows_and_sorted_into_their_parts(tmp_path):
    write(tmp_path, "a", [("hello world", "direction"), ("x", "direction"), ("audited", "audit"), ("reports", "report")])
    (task,) = load_references(tmp_path, ["a"], Letters(), 4)
    assert [decoded(example) for example in task.parts["direction"]] == [["hell", "o wo", "rld"]]  # "x" has no target
    assert [decoded(example) for example in task.parts["audit"]] == [["audi", "ted"]]
    write(tmp_path, "b", [("hello", "direction"), ("aa", "audit"), ("bb", "report")])
    (task,) = load_references(tmp_path, ["b"], Letters(), 4)
    assert decoded(task.parts["direction"][0]) == ["hell"]  # the single token left over has no target


def test_no_tasks_is_an_error_with_two_ways_out(tmp_path):
    with pytest.raises(DataError, match=r"no reference tasks.*data.reference_paths=\{task: file.jsonl\}.*selection=random"):
        load_references(tmp_path, [], Letters(), 8)


def test_an_empty_part_is_an_error_with_the_number_of_examples(tmp_path):
    write(tmp_path, "a", [("some text", "direction"), ("q", "audit"), ("more text", "direction")])
    with pytest.raises(DataError, match=r"'a' has no usable example in its parts \['audit', 'report'\].*\(3 now\)"):
        load_references(tmp_path, ["a"], Letters(), 8)


def test_windows_are_drawn_by_hash_and_change_with_the_round():
    task = ReferenceTask("t", {part: [[np.array([i, j]) for j in range(2)] for i in range(40)] for part in PARTS})
    first = [w.tolist() for w in task.windows("direction", 10, seed=0, round_=0)]
    assert first == [w.tolist() for w in task.windows("direction", 10, seed=0, round_=0)]
    assert len(first) == 20 and [i for i, _ in first] == sorted(i for i, _ in first)  # whole examples, in their order
    others = [task.windows("direction", 10, 0, 1), task.windows("direction", 10, 1, 0), task.windows("audit", 10, 0, 0)]
    assert all([w.tolist() for w in other] != first for other in others)
    assert len(task.windows("direction", 1000, 0)) == 80
    drawn = np.concatenate([np.unique([i for i, _ in task.windows("direction", 10, 0, r)]) for r in range(200)])
    assert np.abs(np.bincount(drawn, minlength=40) / 200 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 200)
