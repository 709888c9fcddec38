"""FilesSource: Parquet, Arrow, text and JSON lines against what pyarrow and the codecs' libraries wrote."""

import gzip
import json
import lzma
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mads.data import documents as documents_module
from mads.data import files as files_module
from mads.data import rejects as rejects_module
from mads.data.documents import Document
from mads.data.files import FilesSource
from mads.data.rejects import Rejects
from mads.data.schema import DataError

TEXTS = ["one", "zwei ä", "三\nlines\r\n", "four " * 500]
DOMAINS = ["x", "y", "x", "z"]


def read(path, **settings):
    rejects = Rejects()
    return list(FilesSource([str(path)], **settings).documents(rejects)), rejects


def table(texts, domains=None, kind=None):
    domains = ["d"] * len(texts) if domains is None else domains
    return pa.table({"id": list(range(len(texts))), "text": pa.array(texts, kind), "domain": domains})


def write_parquet(path, data, **settings):
    pq.write_table(data, path, **settings)


def write_arrow_file(path, data, chunk=None, **_):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, data.schema) as writer:
        writer.write_table(data, max_chunksize=chunk)


def write_arrow_stream(path, data, chunk=None, **_):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data, max_chunksize=chunk)


WRITERS = {"parquet": write_parquet, "arrow": write_arrow_file, "arrows": write_arrow_stream}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.string_view(),
        pa.binary_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ],
    ids=str,
)
def test_every_column_type_of_text(tmp_path, ending, kind):
    values = [t.encode() for t in TEXTS] if "binary" in str(kind) else TEXTS
    path = tmp_path / f"in.{ending}"
    WRITERS[ending](path, table(values, DOMAINS, kind))
    found, rejects = read(path)
    assert found == [Document(t, d, path.name, i) for i, (t, d) in enumerate(zip(TEXTS, DOMAINS), 1)]
    assert rejects.total == 0


@pytest.mark.parametrize("ending", WRITERS)
def test_many_batches_and_row_groups_keep_order_and_row_numbers(tmp_path, ending):
    texts = [f"document {i} " * (i % 7 + 1) for i in range(5000)]
    data = table(texts)
    path = tmp_path / f"in.{ending}"
    WRITERS[ending](path, data, **({"row_group_size": 1700} if ending == "parquet" else {"chunk": 1700}))
    found, rejects = read(path, domain_field=None)
    assert [d.text for d in found] == texts and [d.line for d in found] == list(range(1, 5001))
    assert {d.domain for d in found} == {"in"} and rejects.total == 0


@pytest.mark.parametrize("ending", WRITERS)
def test_every_kind_of_bad_row_is_counted_with_its_place(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(documents_module, "MAX_DOCUMENT_BYTES", 1000)
    broken = pa.array([b"fine", b"\xff\xfe", None, b"  \n", b"a" * 1001, b"fine", b"fine"]).view(pa.string())
    path = tmp_path / f"in.{ending}"
    WRITERS[ending](path, table(broken, ["d", "d", "d", "d", "d", None, "d"]))
    found, rejects = read(path)
    assert [d.line for d in found] == [1, 7]
    assert [(reason, line) for reason, _, line, _ in rejects] == [
        ("invalid UTF-8", 2),
        ("wrong type", 3),
        ("empty text", 4),
        ("document too long", 5),
        ("wrong type", 6),
    ]


@pytest.mark.parametrize("ending", WRITERS)
def test_a_column_that_is_missing_or_no_text_rejects_every_row_in_one_entry(tmp_path, ending):
    path = tmp_path / f"in.{ending}"
    WRITERS[ending](path, table(TEXTS))
    for settings, reason, words in [
        ({"text_field": "content"}, "missing field", "1 to 4: 'content', the columns are ['id', 'text', 'domain']"),
        ({"domain_field": "id"}, "wrong type", "1 to 4: 'id' is a column of int64, not of strings"),
    ]:
        found, rejects = read(path, **settings)
        assert not found and rejects.counts == {reason: 4} and rejects.total == 4
        assert rejects.entries == [(reason, path.name, 1, words)]
        with pytest.raises(DataError, match="4 of 4"):
            rejects.raise_if_too_many(0, 0.5)
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    WRITERS[ending](path, twice)
    assert read(path, domain_field=None)[1].counts == {"wrong type": 1}


def test_a_damaged_row_group_is_counted_and_the_next_one_is_read(tmp_path):
    path = tmp_path / "in.parquet"
    rng = random.Random(0)
    texts = [f"{rng.getrandbits(400):x}" for _ in range(300)]
    write_parquet(path, table(texts), row_group_size=100, compression="zstd", use_dictionary=False)
    place = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    raw = bytearray(path.read_bytes())
    raw[place : place + 300] = bytes(300)
    path.write_bytes(bytes(raw))
    found, rejects = read(path)
    assert [d.line for d in found] == [*range(1, 101), *range(201, 301)]
    assert rejects.counts == {"damaged parquet": 100} and rejects.entries[0][3].startswith("101 to 200: row group 1: ")


def test_a_cut_arrow_stream_and_bytes_behind_it_are_damage(tmp_path):
    path = tmp_path / "in.arrows"
    texts = [f"text {i}" for i in range(100)]
    write_arrow_stream(path, table(texts), chunk=10)
    whole = path.read_bytes()
    with open(path, "rb") as file:
        reader, ends = pa.ipc.open_stream(file), []
        for _ in reader:
            ends.append(file.tell())
    path.write_bytes(whole[: ends[4]])  # exactly between two record batches
    found, rejects = read(path)
    assert len(found) == 50 and rejects.counts == {"damaged arrow": 1} and rejects.entries[0][2] == 51
    path.write_bytes(whole + whole)
    found, rejects = read(path)
    assert len(found) == 100 and rejects.entries[0][2] == 101 and "after the end" in rejects.entries[0][3]


@pytest.mark.parametrize("ending", ["parquet", "arrow", "arrows"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"ARROW1\0\0", b"no such file format" * 10])
def test_what_is_no_such_file_is_one_reject(tmp_path, ending, content):
    path = tmp_path / f"in.{ending}"
    path.write_bytes(content)
    found, rejects = read(path)
    assert not found and rejects.total == 1 and rejects.entries[0][0] == f"damaged {ending.removesuffix('s')}"


def test_text_folders_are_one_document_a_file_with_the_folder_as_domain(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(documents_module, "MAX_DOCUMENT_BYTES", 1000)
    corpus = tmp_path / "corpus"
    contents = {
        "news/2024/a.txt": b"\xef\xbb\xbfone\r\n",
        "news/b.txt.gz": gzip.compress("zwei ä".encode()),
        "books/c.txt.zst": zstandard.ZstdCompressor().compress(b"three"),
        "books/d.md.xz": lzma.compress(b"four"),
        "books/e.txt": "fünf".encode("latin-1"),
        "books/f.txt": b"",
        "books/g.txt": b"a" * 1001,
        "books/h.txt.zst": zstandard.ZstdCompressor().compress(b"a" * 10_000_000),
        "books/i.txt.gz": gzip.compress(b"cut off")[:-3],
        "books/j.txt": "sechs".encode("utf-16"),
        "books/k.txt": b"a" * 1000,
    }
    for name, raw in contents.items():
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_bytes(raw)
    found, rejects = read(corpus, text_field="unused")
    assert found == [
        Document("three", "books", "books/c.txt.zst", 1),
        Document("four", "books", "books/d.md.xz", 1),
        Document("a" * 1000, "books", "books/k.txt", 1),
        Document("one\r\n", "news", "news/2024/a.txt", 1),
        Document("zwei ä", "news", "news/b.txt.gz", 1),
    ]
    assert [(reason, origin[6:7]) for reason, origin, _, _ in rejects] == [
        ("invalid UTF-8", "e"),
        ("empty text", "f"),
        ("document too long", "g"),
        ("document too long", "h"),
        ("damaged gzip", "i"),
        ("invalid UTF-8", "j"),
    ]
    assert read(corpus / "news" / "2024")[0][0].domain == "2024"


def test_formats_by_ending_by_setting_and_their_errors(tmp_path):
    write_parquet(tmp_path / "a.parquet", table(["p"]))
    write_arrow_file(tmp_path / "b.feather", table(["f"]))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(b'{"text": "j", "domain": "d"}\n'))
    (tmp_path / "d.txt").write_text("t")
    (tmp_path / "e.bin").write_text('{"text": "named", "domain": "d"}\n')
    found, rejects = read(tmp_path)
    assert [d.text for d in found] == ["p", "f", "j", "t"] and rejects.total == 0
    assert [d.text for d in read(tmp_path / "*.jsonl*")[0]] == ["j"]
    assert [d.text for d in read(tmp_path / "e.bin", format="jsonl")[0]] == ["named"]
    described = json.dumps(FilesSource([str(tmp_path)]).describe())
    assert str(tmp_path) not in described and '"format": "arrow", "name": "b.feather"' in described
    with pytest.raises(DataError, match="e.bin tells no format.*parquet.*data.format"):
        read(tmp_path / "e.bin")
    with pytest.raises(DataError, match="unknown format 'csv'"):
        read(tmp_path, format="csv")
    with pytest.raises(DataError, match=r"\.parquet"):
        FilesSource([str(tmp_path / "missing")], format="parquet")


@pytest.mark.parametrize("ending", WRITERS)
def test_fuzz_every_row_is_a_document_or_counted(tmp_path, ending):
    """Without checksums a flipped bit in a text is another text; no row may vanish, none appear twice, nothing else be raised."""
    rng = random.Random(44)
    texts = [f"text {i} äöü 漢字 " * rng.randrange(1, 5) for i in range(60)]
    path = tmp_path / f"in.{ending}"
    sizes = {"row_group_size": 25} if ending == "parquet" else {"chunk": 25}
    WRITERS[ending](path, table(texts), **sizes)
    whole, damaged, yielded = path.read_bytes(), 0, 0
    for _ in range(1700):
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(broken))
            kind = rng.randrange(4)
            if kind < 2:
                broken[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                broken[at : at + rng.randrange(64)] = rng.randbytes(rng.randrange(64))
            else:
                del broken[rng.randrange(len(broken) // 2, len(broken)) :]
        path.write_bytes(bytes(broken))
        found, rejects = read(path)
        numbers = [d.line for d in found]
        assert numbers == sorted(set(numbers))
        assert len(found) + rejects.total >= 60 or any("damaged" in r or "missing" in r for r in rejects.counts), rejects.counts
        assert all(d.text.strip() and d.text.encode() and d.domain for d in found)
        damaged, yielded = damaged + rejects.total, yielded + len(found)
    assert damaged > 1000 and yielded > 5000


def test_rejects_beyond_the_memory_limit_are_listed_from_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(rejects_module, "_ENTRIES_IN_MEMORY", 3)
    rejects, other = Rejects(), Rejects()
    for line in range(1, 8):
        (rejects if line < 6 else other).add("wrong type", "ä.jsonl", line, f"détail {line % 2}", count=line)
    rejects.extend(other)
    assert len(rejects.entries) == 3 and rejects.total == 28 and rejects.counts == {"wrong type": 28}
    rejects.write(tmp_path / "rejected.jsonl")
    written = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    ranges = ["", *(f"{n} to {2 * n - 1}: " for n in range(2, 8))]
    assert written == [
        {"reason": "wrong type", "origin": "ä.jsonl", "line": n, "detail": f"{span}détail {n % 2}"}
        for n, span in enumerate(ranges, 1)
    ]


_READ = """
import resource, sys
from mads.data.files import FilesSource
from mads.data.rejects import Rejects
list(FilesSource([sys.argv[1]]).documents(Rejects()))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = count = 0
for document in FilesSource([sys.argv[2]]).documents(Rejects()):
    size += len(document.text)
    count += 1
print(count, size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("name", ["in.parquet", "one.parquet", "in.arrow", "in.arrows", "in.jsonl.zst", "in.jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    """400 MB of text, plain as one Parquet row group or as one text repeated (which packs to nothing), within 100 MB."""
    (tmp_path / "small").mkdir()
    rng, kind = random.Random(5), name.split(".", 1)[1]
    one = rng.randbytes(50_000).hex()
    for path, count in ((tmp_path / "small" / name, 4), (tmp_path / name, 4000)):
        if kind.startswith("jsonl"):
            line = json.dumps({"text": one, "domain": "d"}).encode() + b"\n"
            with open(path, "wb") as file:
                packed = zstandard.ZstdCompressor(level=1).stream_writer(file) if kind.endswith("zst") else file
                with packed:
                    for _ in range(count):
                        packed.write(line)
            continue
        batch = pa.record_batch({"text": [one if name == "one.parquet" else f"{i} {one}" for i in range(4)], "domain": ["d"] * 4})
        if kind == "parquet":
            data = pa.Table.from_batches([batch] * (count // 4))
            pq.write_table(data, path, use_dictionary=name == "one.parquet", row_group_size=1 << 20, write_batch_size=64)
        else:
            WRITERS[kind](path, pa.Table.from_batches([batch] * (count // 4)))
    arguments = [sys.executable, "-c", _READ, str(tmp_path / "small" / name), str(tmp_path / name)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=True, cwd=documents_module.__file__.split("/mads/data")[0]
    )
    count, size, grown = map(int, done.stdout.split())
    assert count == 4000 and size >= 400_000_000
    assert grown < 100_000_000
