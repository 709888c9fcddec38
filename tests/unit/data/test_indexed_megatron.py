"""D6 against Megatron's own code: each reads the other's files, and both rewrite them byte for byte."""

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from mads.data import indexed
from mads.data.indexed import IndexedReader, IndexedWriter

PEER = Path(__file__).resolve().parents[2] / "megatron_peer.py"
DTYPES = ("uint16", "int32")
HUGE = [2**30, 2**30, 2**30 + 5, 3]  # byte offsets beyond 2**32, token offsets beyond 2**31 (gpt-neox 493)


def documents_of(dtype):
    """Documents as lists of sequences: several, one, an empty sequence, no sequence, one at the end with the largest token."""
    rng = np.random.default_rng(len(dtype))
    largest = 65535 if dtype == "uint16" else 2**31 - 1
    shape = [[5, 5, 3], [1], [4, 0, 2], [], [0], [7, 2]]
    documents = [[rng.integers(0, largest, n).tolist() for n in document] for document in shape]
    documents[-1][-1][-1] = largest
    return documents


def write_ours(prefix, dtype, documents):
    with IndexedWriter(prefix, getattr(np, dtype)) as writer:
        for sequences in documents:
            tokens = np.array([t for s in sequences for t in s], dtype=np.int64)
            writer.add_document(tokens, np.array([len(s) for s in sequences], dtype=np.int64))


def copy_ours(prefix, target):
    """Read by IndexedReader, written again by IndexedWriter."""
    reader = IndexedReader(prefix)
    with IndexedWriter(target, reader.dtype) as writer:
        for first, last in zip(reader.documents[:-1].tolist(), reader.documents[1:].tolist()):
            rows = [reader[i] for i in range(first, last)]
            writer.add_document(np.concatenate([reader.tokens[:0], *rows]), np.array([len(r) for r in rows], dtype=int))


def write_sparse(prefix):
    with open(f"{prefix}.idx", "wb") as f:
        pointers = [2 * sum(HUGE[:i]) for i in range(len(HUGE))]
        f.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(HUGE), 2))
        f.write(struct.pack("<4i4q2q", *HUGE, *pointers, 0, 4))
    with open(f"{prefix}.bin", "wb") as f:
        for at, values in ((sum(HUGE[:2]), (5,)), (sum(HUGE[:3]) - 3, (1, 2, 3, 7, 8, 9))):
            f.seek(2 * at)
            f.write(struct.pack(f"<{len(values)}H", *values))


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Folder with our files, Megatron's files and their rewrites, and what Megatron said: one start for all tests."""
    folder = tmp_path_factory.mktemp("megatron")
    jobs, names = [], []

    def ask(name, **job):
        names.append(name)
        jobs.append({key: str(value) if isinstance(value, Path) else value for key, value in job.items()})

    for dtype in DTYPES:
        write_ours(folder / f"ours_{dtype}", dtype, documents_of(dtype))
        ask(f"mapped_{dtype}", do="read", prefix=folder / f"ours_{dtype}", mmap=True)
        ask(f"file_{dtype}", do="read", prefix=folder / f"ours_{dtype}", mmap=False)
        ask("", do="write", prefix=folder / f"theirs_{dtype}", dtype=dtype, documents=documents_of(dtype))
        ask("", do="copy", prefix=folder / f"ours_{dtype}", target=folder / f"ours_{dtype}_by_megatron")
    write_sparse(folder / "sparse")
    ask("sparse", do="read", prefix=folder / "sparse")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, str(PEER), str(folder / "jobs.json"), str(folder / "answers.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, dict(zip(names, json.loads((folder / "answers.json").read_text())))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", ["mapped", "file"])
def test_d6_megatron_reads_our_files(peer, how, dtype):
    documents = documents_of(dtype)
    assert peer[1][f"{how}_{dtype}"] == {
        "dtype": dtype,
        "lengths": [len(s) for d in documents for s in d],
        "documents": np.cumsum([0] + [len(d) for d in documents]).tolist(),
        "sequences": [s for d in documents for s in d],
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_d6_we_read_megatrons_files(peer, dtype):
    documents, reader = documents_of(dtype), IndexedReader(peer[0] / f"theirs_{dtype}")
    assert reader.dtype == np.dtype(dtype)
    assert [row.tolist() for row in reader] == [s for d in documents for s in d]
    assert reader.documents.tolist() == np.cumsum([0] + [len(d) for d in documents]).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_d6_both_write_and_rewrite_the_same_bytes(peer, dtype):
    folder = peer[0]
    copy_ours(folder / f"theirs_{dtype}", folder / f"theirs_{dtype}_by_us")
    for suffix in ("bin", "idx"):
        ours = (folder / f"ours_{dtype}.{suffix}").read_bytes()
        for name in (f"theirs_{dtype}", f"theirs_{dtype}_by_us", f"ours_{dtype}_by_megatron"):
            assert (folder / f"{name}.{suffix}").read_bytes() == ours, name


def check_sparse(prefix):
    reader = IndexedReader(prefix)
    assert reader[3].tolist() == [7, 8, 9] and reader[2][0] == 5 and reader[2][-3:].tolist() == [1, 2, 3]
    reader.will_need(3)
    assert len(reader[2]) == HUGE[2]
    return reader


def check_pointers_beyond_2_to_the_31():
    """Reader, and writer of an index alone."""
    with tempfile.TemporaryDirectory() as folder:
        write_sparse(f"{folder}/sparse")
        check_sparse(f"{folder}/sparse")
        indexed.write_index(Path(f"{folder}/own.idx"), np.dtype(np.uint16), np.array(HUGE, np.int32), None, np.array([0, 4]))
        assert Path(f"{folder}/own.idx").read_bytes() == Path(f"{folder}/sparse.idx").read_bytes()


def test_d6_pointers_are_64_bits_wide():
    check_pointers_beyond_2_to_the_31()


def test_d6_more_than_2_to_the_31_tokens_for_both_readers(peer):
    assert len(check_sparse(peer[0] / "sparse").tokens) == sum(HUGE) > 2**31
    said = peer[1]["sparse"]
    assert said["lengths"] == HUGE and said["sequences"] == [[0] * 6, [0] * 6, [5, 0, 0, 1, 2, 3], [7, 8, 9]]
