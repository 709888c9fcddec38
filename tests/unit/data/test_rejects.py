"""Rejects: neighbouring ones are one entry, and what is listed is bounded; all are counted."""

import gzip
import json
import time

import pytest
import zstandard
from reject_support import rejected_lines

from mads.data import compression as compression_module
from mads.data import rejects as rejects_module
from mads.data.documents import JsonlSource, read_lines
from mads.data.rejects import Rejects


def check_neighbours_with_one_reason_are_one_entry():
    rejects = Rejects()
    for line in (1, 2, 3, 5, 6):
        rejects.add("blank line", "a", line)
    rejects.add("blank line", "a", 7, count=3)
    rejects.add("wrong type", "a", 10, "why")
    rejects.add("wrong type", "a", 11, "why else")
    rejects.add("wrong type", "b", 12, "why else")
    assert rejects.entries == list(rejects)
    assert rejects.entries == [
        ("blank line", "a", 1, "1 to 3"),
        ("blank line", "a", 5, "5 to 9"),
        ("wrong type", "a", 10, "why"),
        ("wrong type", "a", 11, "why else"),
        ("wrong type", "b", 12, "why else"),
    ]
    assert rejects.counts == {"blank line": 8, "wrong type": 3} and len(rejected_lines(rejects)) == rejects.total == 11


def test_neighbours_with_one_reason_are_one_entry():
    check_neighbours_with_one_reason_are_one_entry()


def check_no_file_lists_more_than_its_share():
    original = rejects_module._ENTRIES_OF_A_FILE
    rejects_module._ENTRIES_OF_A_FILE = 4
    try:
        rejects, other = Rejects(), Rejects()
        for line in range(1, 21):
            rejects.add(("odd", "even")[line % 2 == 0], "a", line)
        rejects.add("odd", "b", 1)
        other.extend(rejects)
        entries = list(rejects)
    finally:
        rejects_module._ENTRIES_OF_A_FILE = original
    assert len(entries) == 4 + 1 + 2
    assert entries[-2:] == [
        ("odd", "a", 5, "8 such from here on are not listed one by one"),
        ("even", "a", 6, "8 such from here on are not listed one by one"),
    ]
    assert rejects.counts == {"even": 10, "odd": 11} == other.counts and list(other) == entries


def test_no_file_lists_more_than_its_share():
    check_no_file_lists_more_than_its_share()


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz"])
def test_a_hundred_million_blank_lines_are_one_entry_at_once(tmp_path, name):
    raw = b'{"text": "a", "domain": "d"}\n' + b"\n" * 100_000_000 + b'\r\n \n{"text": "b", "domain": "d"}\n'
    (tmp_path / name).write_bytes(gzip.compress(raw, 1) if name.endswith("gz") else raw)
    rejects, start = Rejects(), time.monotonic()
    found = list(JsonlSource([str(tmp_path / name)]).documents(rejects))
    assert time.monotonic() - start < 20  # a line at a time takes minutes
    assert [(d.text, d.line) for d in found] == [("a", 1), ("b", 100_000_004)]
    assert list(rejects) == [("blank line", name, 2, "2 to 100000003")] and rejects.total == 100_000_002


def test_blank_lines_at_the_end_and_alone(tmp_path):
    for raw, lines, blank in [(b"\n", 0, 1), (b"a\n\n", 1, 1), (b"\n\na", 1, 2), (b"", 0, 0)]:
        (tmp_path / "in").write_bytes(raw)
        rejects = Rejects()
        assert len(list(read_lines(str(tmp_path / "in"), "in", rejects))) == lines and rejects.total == blank


def test_a_file_that_unpacks_to_far_more_than_text_does_is_damaged_from_there_on(tmp_path, monkeypatch):
    monkeypatch.setattr(compression_module, "BOMB_BYTES", 1_000_000)
    line = json.dumps({"text": "a" * 1000, "domain": "d"}).encode() + b"\n"
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(line * 20_000))
    limit = max(1_000_000, compression_module.BOMB_RATIO * path.stat().st_size)
    rejects = Rejects()
    found = list(JsonlSource([str(path)]).documents(rejects))
    assert limit < 20_000 * len(line)
    assert limit - 200_000 < len(found) * len(line) <= limit
    assert rejects.counts == {"damaged zstd": 1} and "over 500 times its size" in rejects.entries[0][3]
    assert rejects.entries[0][2] == len(found) + 1
