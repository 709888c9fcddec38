"""Documents, rejects and the JSONL reader."""

import gzip
import json
import random

import pytest
from reject_support import rejected_lines

from mads.data.documents import Document, JsonlSource, Rejects, find_files, read_lines, without_duplicates
from mads.data.schema import DataError


def read(source):
    rejects = Rejects()
    return list(source.documents(rejects)), rejects


def write_lines(path, records):
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records))
    return str(path)


def test_reads_plain_and_gzip_in_sorted_order_with_neutral_names(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.jsonl").write_text('{"text": "one", "domain": "x"}\n{"text": "two", "domain": "y"}')  # no final line end
    with gzip.open(tmp_path / "b" / "c.jsonl.gz", "wt") as f:
        f.write('{"text": "drei \\u00e4", "domain": "x"}\r\n')
    with gzip.open(tmp_path / "b" / "packed.jsonl", "wt") as f:  # gzip without the name
        f.write('{"text": "four", "domain": "z"}\n')
    (tmp_path / "b" / "notes.md").write_text("not data")
    documents, rejects = read(JsonlSource([str(tmp_path)]))
    assert documents == [
        Document("one", "x", "a.jsonl", 1),
        Document("two", "y", "a.jsonl", 2),
        Document("drei ä", "x", "b/c.jsonl.gz", 1),
        Document("four", "z", "b/packed.jsonl", 1),
    ]
    assert rejects.total == 0
    described = json.dumps(JsonlSource([str(tmp_path)]).describe())
    assert str(tmp_path) not in described and "b/c.jsonl.gz" in described


def test_an_edited_file_is_described_differently(tmp_path):
    path = write_lines(tmp_path / "in.jsonl", [{"text": "one", "domain": "d"}])
    before = JsonlSource([path]).describe()
    write_lines(tmp_path / "in.jsonl", [{"text": "two", "domain": "d"}])
    after = JsonlSource([path]).describe()
    assert after != before and after["files"][0]["bytes"] == before["files"][0]["bytes"]


def test_globs_files_and_folders_give_each_file_once(tmp_path):
    for name in ("x1.jsonl", "x2.jsonl", "y[1].jsonl"):
        write_lines(tmp_path / name, [{"text": "t", "domain": "d"}])
    paths = [str(tmp_path / "x*.jsonl"), str(tmp_path / "x2.jsonl"), str(tmp_path / "y[1].jsonl")]
    assert [name for name, _ in find_files(paths)] == ["x1.jsonl", "x2.jsonl", "y[1].jsonl"]


def test_domain_from_the_file_name(tmp_path):
    path = write_lines(tmp_path / "news.v2.jsonl.gz", [])
    with gzip.open(path, "wb") as f:
        f.write(b'{"text": "t"}\n')
    documents, _ = read(JsonlSource([path], domain_field=None))
    assert documents[0].domain == "news"


def test_every_kind_of_bad_line_is_counted_with_its_place(tmp_path):
    good = {"text": "fine", "domain": "d"}
    lines = [
        good,
        b'{"text": "cut\n',
        b"[1, 2]\n",
        {"domain": "d"},
        {"text": 5, "domain": "d"},
        {"text": " \n", "domain": "d"},
        b'{"text": "\xff", "domain": "d"}\n',
        b"\n",
        {"text": "t"},
        {"text": "t", "domain": None},
        b'{"text": "\\ud800", "domain": "d"}\n',
        b"[" * 200_000 + b"\n",
        b'{"n": ' + b"9" * 5000 + b"}\n",
        good,
    ]
    documents, rejects = read(JsonlSource([write_lines(tmp_path / "in.jsonl", lines)]))
    assert [d.line for d in documents] == [1, 14]
    assert rejects.counts == {
        "blank line": 1,
        "empty text": 1,
        "invalid UTF-8": 1,
        "invalid Unicode": 1,
        "malformed JSON": 3,
        "missing field": 2,
        "not an object": 1,
        "wrong type": 2,
    }
    assert [(origin, line) for _, origin, line, _ in rejects.entries] == [("in.jsonl", n) for n in range(2, 14)]
    rejects.write(tmp_path / "rejected.jsonl")
    written = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert len(written) == 12 and written[2] == {
        "reason": "missing field",
        "origin": "in.jsonl",
        "line": 4,
        "detail": "'text', the line has ['domain']",
    }


@pytest.mark.parametrize("damage", ["truncated", "garbled", "not gzip", "empty"])
def test_damaged_gzip_keeps_what_came_before(tmp_path, damage):
    rng = random.Random(0)
    lines = [json.dumps({"text": f"{rng.getrandbits(120):030x}", "domain": "d"}) for _ in range(2000)]
    raw = gzip.compress("\n".join(lines).encode())
    raw = {
        "truncated": raw[: len(raw) // 2],
        "garbled": raw[:20000] + b"\xff" * 9000 + raw[29000:],
        "not gzip": b"plain text\n",
        "empty": b"",
    }[damage]
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(raw)
    documents, rejects = read(JsonlSource([str(path)]))
    if damage == "empty":  # an empty file has no lines
        assert not documents and rejects.total == 0
        return
    assert rejects.counts.get("damaged gzip") == 1
    assert (len(documents) > 100) == (damage in ("truncated", "garbled"))
    assert [d.line for d in documents if json.loads(lines[d.line - 1])["text"] == d.text] == list(range(1, len(documents) + 1))


def test_a_line_over_the_limit_is_one_reject(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"a" * 5 + b"\n" + b"b" * 25 + b"\n" + b"c" * 10 + b"\n" + b"d" * 9 + b"\n" + b"e" * 30)
    rejects = Rejects()
    assert [n for n, _ in read_lines(str(path), "in", rejects, max_line_bytes=10)] == [1, 4]
    assert [line for _, line in rejected_lines(rejects)] == [2, 3, 5]


def test_byte_order_mark_is_not_part_of_the_first_line(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "t", "domain": "d"}\n')
    assert read(JsonlSource([str(path)]))[0] == [Document("t", "d", "in.jsonl", 1)]


def test_no_match_names_the_pattern(tmp_path):
    with pytest.raises(DataError, match="nothing-here"):
        JsonlSource([str(tmp_path / "nothing-here*.jsonl")])
    with pytest.raises(DataError, match="jsonl"):
        JsonlSource([str(tmp_path)])
    with pytest.raises(DataError, match="data.paths"):
        JsonlSource([])


def test_too_many_rejects_show_counts_and_the_first():
    rejects = Rejects()
    for line in range(1, 8):
        rejects.add("malformed JSON", "in.jsonl", line, "why")
    rejects.raise_if_too_many(accepted=93, max_fraction=0.07)
    with pytest.raises(DataError, match=r"7 of 99 .*7 malformed JSON(.|\n)*in.jsonl:1: malformed JSON \(1 to 7: why\)"):
        rejects.raise_if_too_many(accepted=92, max_fraction=0.07)
    Rejects().raise_if_too_many(accepted=0, max_fraction=0.0)


def test_duplicates_are_rejected_and_name_the_first():
    rejects = Rejects()
    documents = [Document("a", "x", "f", 1), Document("b", "x", "f", 2), Document("a", "y", "g", 3)]
    assert list(without_duplicates(documents, rejects)) == documents[:2]
    assert rejects.entries == [("duplicate", "g", 3, "same text as f:1")]


def test_fuzz_every_line_is_a_document_or_a_reject(tmp_path):
    rng = random.Random(1)
    base = [
        json.dumps({"text": f"text {i} äöü 漢字 \u2028", "domain": "d", "n": [1, {"a": None}]}, ensure_ascii=bool(i % 2)).encode()
        for i in range(8)
    ]
    path = tmp_path / "in.jsonl"
    yielded = rejected = 0
    for _ in range(400):
        lines = []
        for line in base:
            line = bytearray(line)
            for _ in range(rng.choice((0, 0, 1, 3))):
                at = rng.randrange(len(line))
                kind = rng.randrange(4)
                if kind == 0:
                    line[at] = rng.randrange(256)
                elif kind == 1:
                    del line[at : at + rng.randrange(1, 9)]
                elif kind == 2:
                    line[at:at] = rng.choice(
                        (b'"', b"\\", b"\x00", b"\\ud83d", b"{", b"\n", b"\r", b"\xf0\x9f", b"NaN", b"1e999")
                    )
                else:
                    line[at:at] = line[:at]
                line = line or bytearray(b" ")
            lines.append(bytes(line))
        content = b"\n".join(lines)
        path.write_bytes(content)
        documents, rejects = read(JsonlSource([str(path)]))
        numbers = [d.line for d in documents] + [line for _, line in rejected_lines(rejects)]
        expected = content.split(b"\n")
        expected = expected[:-1] if expected[-1] == b"" else expected
        assert sorted(numbers) == list(range(1, len(expected) + 1))
        assert all(d.text.strip() and d.text.encode() for d in documents)
        yielded, rejected = yielded + len(documents), rejected + rejects.total
    assert yielded > 500 and rejected > 500


def test_fuzz_damaged_gzip_never_raises(tmp_path):
    rng = random.Random(2)
    raw = gzip.compress(b"\n".join(json.dumps({"text": f"{rng.getrandbits(64):x}", "domain": "d"}).encode() for _ in range(50)))
    path = tmp_path / "in.jsonl.gz"
    for _ in range(200):
        broken = bytearray(raw)
        for _ in range(rng.randrange(1, 4)):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(broken[: rng.randrange(1, len(broken) + 1)]))
        documents, rejects = read(JsonlSource([str(path)]))
        assert documents or rejects.total
