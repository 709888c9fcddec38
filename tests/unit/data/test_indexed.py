"""D6: the files are read and written by an independent parser in this test, byte for byte."""

import os
import pickle
import struct

import numpy as np
import pytest

from mads.data.indexed import IndexedReader, IndexedWriter, token_dtype
from mads.data.schema import DataError


def write_plain(prefix, sequences, documents, code, dtype, tokens=None, pointers=None):
    """An independent writer: struct and bytes only. `documents` is the whole document index; no pointers: without gaps."""
    item = np.dtype(dtype).itemsize
    pointers = pointers or [item * sum(sequences[:i]) for i in range(len(sequences))]
    with open(f"{prefix}.idx", "wb") as f:
        f.write(b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", code))
        f.write(struct.pack("<QQ", len(sequences), len(documents)))
        f.write(struct.pack(f"<{len(sequences)}i", *sequences))
        f.write(struct.pack(f"<{len(sequences)}q", *pointers))
        f.write(struct.pack(f"<{len(documents)}q", *documents))
    if tokens is not None:
        letter = "H" if item == 2 else "i"
        with open(f"{prefix}.bin", "wb") as f:
            f.write(struct.pack(f"<{len(tokens)}{letter}", *tokens))


def parse_plain(prefix):
    """An independent reader: (dtype code, sequences as lists of ints, document index)."""
    raw, data = open(f"{prefix}.idx", "rb").read(), open(f"{prefix}.bin", "rb").read()
    assert raw[:9] == b"MMIDIDX\x00\x00"
    version, code, n, m = struct.unpack_from("<QBQQ", raw, 9)
    assert version == 1 and len(raw) == 34 + 12 * n + 8 * m
    lengths = struct.unpack_from(f"<{n}i", raw, 34)
    pointers = struct.unpack_from(f"<{n}q", raw, 34 + 4 * n)
    letter = {8: "H", 4: "i"}[code]
    rows = [list(struct.unpack_from(f"<{k}{letter}", data, p)) for k, p in zip(lengths, pointers)]
    return code, rows, list(struct.unpack_from(f"<{m}q", raw, 34 + 12 * n))


@pytest.mark.parametrize("vocab, code", [(65536, 8), (65537, 4), (300, 8)])
def test_d6_writer_is_parsed_by_an_independent_reader(tmp_path, vocab, code):
    rng = np.random.default_rng(vocab)
    lengths = [[5, 5, 3], [1], [7, 2]]
    docs = [rng.integers(0, vocab, sum(n)) for n in lengths]
    docs[0][0] = vocab - 1
    with IndexedWriter(tmp_path / "s", token_dtype(vocab)) as writer:
        for tokens, n in zip(docs, lengths):
            writer.add_document(tokens, np.array(n))
    found, rows, index = parse_plain(tmp_path / "s")
    expected = [part.tolist() for tokens, n in zip(docs, lengths) for part in np.split(tokens, np.cumsum(n)[:-1])]
    assert (found, rows, index) == (code, expected, [0, 3, 4, 6])
    assert sorted(os.listdir(tmp_path)) == ["s.bin", "s.idx"]


@pytest.mark.parametrize("code, dtype", [(8, np.uint16), (4, np.int32)])
def test_d6_reader_reads_an_independent_writer_and_rewrites_byte_equal(tmp_path, code, dtype):
    sequences, documents = [4, 0, 3, 6], [0, 1, 1, 3, 4]  # an empty sequence and an empty document
    tokens = np.random.default_rng(1).integers(0, 60000, sum(sequences)).tolist()
    write_plain(tmp_path / "a", sequences, documents, code, dtype, tokens)
    reader = IndexedReader(tmp_path / "a")
    assert [r.tolist() for r in reader] == [tokens[:4], [], tokens[4:7], tokens[7:]]
    assert reader.documents.tolist() == documents and reader.dtype == np.dtype(dtype)
    with IndexedWriter(tmp_path / "b", reader.dtype) as writer:
        for first, last in zip(documents[:-1], documents[1:]):
            rows = [reader[i] for i in range(first, last)]
            writer.add_document(np.concatenate([np.zeros(0, dtype), *rows]), np.array([len(r) for r in rows], dtype=int))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_d6_more_than_2_to_the_31_tokens_on_a_sparse_file(tmp_path):
    sequences = [2**30, 2**30, 2**30 + 5, 3]  # byte offsets beyond 2**32, token offsets beyond 2**31
    write_plain(tmp_path / "s", sequences, [0, 4], 8, np.uint16)
    with open(tmp_path / "s.bin", "wb") as f:
        f.seek(2 * sum(sequences[:3]))
        f.write(struct.pack("<3H", 7, 8, 9))
        f.seek(2 * sum(sequences[:2]))
        f.write(struct.pack("<H", 5))
    reader = IndexedReader(tmp_path / "s")
    assert reader[3].tolist() == [7, 8, 9] and reader[2][0] == 5 and len(reader[2]) == 2**30 + 5


def test_d6_an_index_may_leave_documents_out(tmp_path):
    tokens = list(range(20))
    write_plain(tmp_path / "s", [3, 4, 2], [0, 2, 2, 3], 8, np.uint16, tokens, [4, 10, 30])  # gaps before, between and behind
    reader = IndexedReader(tmp_path / "s")
    assert [r.tolist() for r in reader] == [[2, 3, 4], [5, 6, 7, 8], [15, 16]] and len(reader.tokens) == 20
    again = pickle.loads(pickle.dumps(reader))  # as a worker process gets it
    assert [r.tolist() for r in again] == [[2, 3, 4], [5, 6, 7, 8], [15, 16]]
    write_plain(tmp_path / "s", [3, 4], [0, 2, 2], 8, np.uint16, tokens)  # the last document is left out
    assert len(IndexedReader(tmp_path / "s")) == 2
    write_plain(tmp_path / "s", [3, 4], [0, 1, 2], 8, np.uint16, tokens)  # no document is: the file does not belong to the index
    with pytest.raises(DataError, match="has 40 bytes; s.idx describes 7 tokens of uint16, 14 bytes"):
        IndexedReader(tmp_path / "s")


def test_d6_an_index_longer_than_a_piece_is_checked_and_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("mads.data.indexed._CHUNK", 4)
    lengths, documents = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [0, 2, 2, 3, 7, 8, 11]
    tokens = np.random.default_rng(2).integers(0, 60000, sum(lengths)).tolist()
    write_plain(tmp_path / "a", lengths, documents, 8, np.uint16, tokens)
    reader = IndexedReader(tmp_path / "a")
    with IndexedWriter(tmp_path / "b", np.uint16) as writer:
        for first, last in zip(documents[:-1], documents[1:]):
            writer.add_document(
                np.concatenate([reader.tokens[:0], *(reader[i] for i in range(first, last))]), lengths[first:last]
            )
    assert (tmp_path / "a.idx").read_bytes() == (tmp_path / "b.idx").read_bytes()
    for sequence in range(1, len(lengths)):  # one offset too early by a token, in every piece and on its borders
        pointers = (2 * np.cumsum([0, *lengths[:-1]])).tolist()
        pointers[sequence] -= 2
        write_plain(tmp_path / "a", lengths, documents, 8, np.uint16, None, pointers)
        with pytest.raises(DataError, match=f"sequence {sequence} of 11"):
            IndexedReader(tmp_path / "a")


def test_d6_empty_files(tmp_path):
    IndexedWriter(tmp_path / "s", np.uint16).close()
    assert parse_plain(tmp_path / "s") == (8, [], [0])
    reader = IndexedReader(tmp_path / "s")
    assert len(reader) == 0 and len(reader.tokens) == 0


@pytest.mark.parametrize("suffix", ["bin", "idx"])
@pytest.mark.parametrize("change", [-40, -1, 1])
def test_d6_truncated_or_extended_file_names_file_and_sizes(tmp_path, suffix, change):
    with IndexedWriter(tmp_path / "s", np.uint16) as writer:
        writer.add_document(np.arange(40), np.array([20, 20]))
    path = tmp_path / f"s.{suffix}"
    raw = path.read_bytes()
    path.write_bytes(raw + b"\0" if change > 0 else raw[:change])
    with pytest.raises(DataError, match=rf"s\.{suffix} has {len(raw) + change} bytes"):
        IndexedReader(tmp_path / "s")


def test_d6_damaged_index_is_an_error(tmp_path):
    cases = {"document index": ([3, 4], [0, 1]), "negative": ([3, -1], [0, 2])}
    for match, (sequences, documents) in cases.items():
        write_plain(tmp_path / "s", sequences, documents, 8, np.uint16, [1] * 7)
        with pytest.raises(DataError, match=match):
            IndexedReader(tmp_path / "s")
    write_plain(tmp_path / "s", [3, 4], [0, 2], 8, np.uint16, [1] * 7)
    raw = bytearray((tmp_path / "s.idx").read_bytes())
    for offset, match in ((0, "no MMIDIDX"), (9, "version"), (17, "dtype code"), (34 + 8 + 8, "describes 39 tokens")):
        broken = raw.copy()
        broken[offset] ^= 0x40
        (tmp_path / "s.idx").write_bytes(broken)
        with pytest.raises(DataError, match=match):
            IndexedReader(tmp_path / "s")
    for pointers in (
        [0, 7],
        [0, 4],
        [2, 6],
        [-8, 6],
        [0, 2**62],
    ):  # half a token, overlap, no room, before the file, far behind it
        write_plain(tmp_path / "s", [3, 4], [0, 2], 8, np.uint16, [1] * 7, pointers)
        with pytest.raises(DataError, match="inside another sequence or a token|describes"):
            IndexedReader(tmp_path / "s")
    (tmp_path / "s.idx").unlink()
    with pytest.raises(DataError, match="No such file"):
        IndexedReader(tmp_path / "s")


def test_writer_refuses_what_it_cannot_store_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="do not fit uint16"), IndexedWriter(tmp_path / "s", np.uint16) as writer:
        writer.add_document(np.array([1, 65536]), np.array([2]))
    with pytest.raises(ValueError, match="add up to 3"), IndexedWriter(tmp_path / "s", np.uint16) as writer:
        writer.add_document(np.array([1, 2]), np.array([3]))
    with pytest.raises(ValueError, match="float32"):
        IndexedWriter(tmp_path / "s", np.float32)
    assert os.listdir(tmp_path) == []
