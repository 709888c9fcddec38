"""data=megatron: token files taken as they are, against the same texts prepared from JSON lines."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prepare import SETTINGS, LengthLabeller, write_corpus

from mads.data.documents import JsonlSource, Rejects
from mads.data.indexed import IndexedReader, IndexedWriter, token_dtype
from mads.data.megatron import TokenFilesSource
from mads.data.pool import Pool
from mads.data.prepare import prepare
from mads.data.schema import DataError, Manifest
from mads.data.settings import PrepareSettings
from mads.data.tokenizer import Tokenizer, train_sentencepiece
from mads.label.given import GivenLabel, GivenScore

MODEL = {}


def tokenizer_path():
    """A SentencePiece model, trained once for all tests."""
    if "path" not in MODEL:
        MODEL["folder"] = tempfile.TemporaryDirectory()
        MODEL["path"] = os.path.join(MODEL["folder"].name, "given.model")
        rows = write_corpus(Path(MODEL["folder"].name) / "text.jsonl", count=80)
        train_sentencepiece([row["text"] for row in rows], SETTINGS["vocab_size"], MODEL["path"])
    return MODEL["path"]


def write_token_file(prefix, rows, kind=".parquet", parts=2):
    """The texts as Megatron's preprocessing writes them, some documents in several sequences, and their attributes."""
    tokenizer = Tokenizer.open(tokenizer_path())
    with IndexedWriter(prefix, token_dtype(tokenizer.vocab_size)) as writer:
        for i, tokens in enumerate(tokenizer.encode([row["text"] for row in rows])):
            tokens = np.append(tokens, tokenizer.eod)
            cut = len(tokens) // 3 if i % parts == 0 else 0
            writer.add_document(tokens, [cut, len(tokens) - cut] if cut else [len(tokens)])
    beside = {"domain": [row["domain"] for row in rows], "score": [i % 50 / 10 for i in range(len(rows))]}
    if kind == ".parquet":
        pq.write_table(pa.table(beside), f"{prefix}.attributes.parquet", row_group_size=7)
    else:
        lines = [json.dumps(dict(zip(beside, values))) for values in zip(*beside.values())]
        Path(f"{prefix}.attributes.jsonl").write_text("\n".join(lines) + "\n")


def settings(**changes):
    return PrepareSettings(**{**SETTINGS, "tokenizer_path": tokenizer_path(), **changes})


def labellers():
    return {"length": LengthLabeller(), "score": GivenScore("score", [0, 1, 3, 5]), "from": GivenLabel("domain")}


def prepare_tokens(folder, target="out", labels=None, progress=lambda line: None, **changes):
    source = TokenFilesSource([str(folder / "*")], tokenizer_path(), domain_field="domain", attribute_fields=("score", "domain"))
    return prepare(folder.parent / target, source, labels or labellers(), None, settings(**changes), progress=progress)


def samples_of(directory, part):
    """(tokens, code of length, its value, score) of each sample in order, and all columns checked by the pool."""
    pool = Pool.open(directory, part)
    tokens = [t.tolist() for t in pool.tokens(np.arange(len(pool)))]
    return tokens, pool.codes("length")[:].tolist(), pool.values("length")[:].tolist()


@pytest.fixture
def corpus(tmp_path):
    """Two token files with 61 documents, the same texts as JSON lines."""
    (tmp_path / "tokens").mkdir()
    rows = write_corpus(tmp_path / "text.jsonl", extra=['{"text": "hi", "domain": "news"}\n'])
    rows.append({"text": "hi", "domain": "news"})
    write_token_file(tmp_path / "tokens" / "a", rows[:40])
    write_token_file(tmp_path / "tokens" / "b", rows[40:], ".jsonl")
    return rows


def check_equal_to_the_texts(folder):
    """Same samples, held-out documents and labels as the texts give; the given columns follow their documents."""
    text = JsonlSource([str(folder / "text.jsonl")])
    prepare(folder / "text", text, {"length": LengthLabeller()}, None, settings(), progress=lambda line: None)
    prepare_tokens(folder / "tokens")
    for part in ("train", "heldout"):
        assert samples_of(folder / "out", part) == samples_of(folder / "text", part)
    ours, theirs = Manifest.read(folder / "out", verify=True), Manifest.read(folder / "text")
    counts = lambda m: {p: {u: n[u] for u in ("documents", "samples", "tokens")} for p, n in m.parts.items()}  # noqa: E731
    assert counts(ours) == counts(theirs) and ours.rejected == theirs.rejected == {"too short": 1}
    assert "b.bin" in (folder / "out" / "rejected.jsonl").read_text()


def test_equal_to_the_same_texts_from_json_lines(corpus, tmp_path):
    check_equal_to_the_texts(tmp_path)


def test_given_columns_follow_their_documents(corpus, tmp_path):
    prepare_tokens(tmp_path / "tokens")
    for part in ("train", "heldout"):
        pool, seen = Pool.open(tmp_path / "out", part), 0
        for shard in range(2):
            index = IndexedReader(tmp_path / "out" / part / f"shard-{shard:05d}")
            offset = 40 * shard
            for d, (first, last) in enumerate(zip(index.documents[:-1].tolist(), index.documents[1:].tolist())):
                for position in range(seen + first, seen + last):
                    score = (d % 50) / 10
                    assert pool.values("score")[position] == np.float32(score)
                    assert pool.codes("score")[position] == np.searchsorted([1, 3], score, side="right")
                    label = pool.labels("from")[int(pool.codes("from")[position])]
                    assert label == corpus[offset + d]["domain"]
            seen += len(index)
        assert seen == len(pool) > 0


def test_the_tokens_are_not_written_again(corpus, tmp_path):
    before = {name: (tmp_path / "tokens" / name).stat() for name in ("a.bin", "b.bin")}
    lines = []
    prepare_tokens(tmp_path / "tokens", progress=lines.append)
    for shard, name in enumerate(before):
        now = (tmp_path / "out" / "train" / f"shard-{shard:05d}.bin").stat()
        assert now.st_ino == before[name].st_ino and now.st_mtime_ns == before[name].st_mtime_ns
        assert any(f"{name}, linked" in line for line in lines)


def test_another_file_system_gets_a_copy_and_says_so(corpus, tmp_path, monkeypatch):
    link = os.link

    def only_inside(source, target):
        if "tokens" in str(source):
            raise OSError(18, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", only_inside)
    lines = []
    prepare_tokens(tmp_path / "tokens", progress=lines.append)
    assert any("a.bin, copied and linked" in line for line in lines)  # one copy for both parts
    train, held = (tmp_path / "out" / part / "shard-00000.bin" for part in ("train", "heldout"))
    assert train.read_bytes() == (tmp_path / "tokens" / "a.bin").read_bytes()
    assert train.stat().st_ino == held.stat().st_ino != (tmp_path / "tokens" / "a.bin").stat().st_ino


def test_prefixes_names_and_folders_are_the_same_source(corpus, tmp_path):
    tokens = tmp_path / "tokens"
    for paths in ([f"{tokens}/a", f"{tokens}/b"], [f"{tokens}/a.bin", f"{tokens}/b.idx"], [str(tokens)], [f"{tokens}/[ab]"]):
        source = TokenFilesSource(paths, tokenizer_path())
        assert [name for name, _ in source.files] == ["a.bin", "b.bin"]
    assert [d.domain for d in source.documents(Rejects())] == ["a"] * 40 + ["b"] * 21  # without a field the file's name


def test_a_second_call_finds_it_prepared_and_a_changed_attribute_is_another_source(corpus, tmp_path):
    first, lines = prepare_tokens(tmp_path / "tokens"), []
    assert prepare_tokens(tmp_path / "tokens", progress=lines.append).fingerprint == first.fingerprint
    assert "prepared already" in lines[0]
    write_token_file(tmp_path / "tokens" / "b", [{**row, "domain": "code"} for row in corpus[40:]], ".jsonl")
    with pytest.raises(DataError, match="prepared with other settings"):
        prepare_tokens(tmp_path / "tokens")


def test_input_that_cannot_be_used_names_what_it_is(corpus, tmp_path):
    tokens = tmp_path / "tokens"
    with pytest.raises(DataError, match="set data.tokenizer.path"):
        TokenFilesSource([str(tokens)], None)
    with pytest.raises(DataError, match="no file matches"):
        TokenFilesSource([f"{tokens}/nothing"], tokenizer_path())
    with IndexedWriter(tmp_path / "ids", np.int32) as writer:
        writer.add_document(np.array([5, 6, 7]), [3])
        writer.add_document(np.array([5, 320, 7]), [3])
    with pytest.raises(
        DataError, match="document 2 .from 1. has the token id 320 at place 1, outside of the tokenizer's 320 ids"
    ):
        list(TokenFilesSource([f"{tmp_path}/ids"], tokenizer_path()).documents(Rejects()))
    with pytest.raises(DataError, match="there is none: write it"):
        TokenFilesSource([f"{tmp_path}/ids"], tokenizer_path(), attribute_fields=["score"])
    (tmp_path / "ids.bin").unlink()
    with pytest.raises(DataError, match="has no ids.bin beside it"):
        TokenFilesSource([f"{tmp_path}/ids"], tokenizer_path())
    with open(tokens / "b.attributes.jsonl", "a") as file:
        file.write('{"domain": "news", "score": 1}\n')
    with pytest.raises(DataError, match="b.attributes.jsonl has 22 rows, b.bin has 21 documents"):
        prepare_tokens(tokens)
    (tokens / "a.idx").write_bytes((tokens / "a.idx").read_bytes()[:-8])
    with pytest.raises(DataError, match="truncated or damaged"):
        prepare_tokens(tokens, "other")


def test_a_row_without_a_value_leaves_its_document_out_and_counts_it(corpus, tmp_path):
    path = tmp_path / "tokens" / "b.attributes.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = '{"domain": "news"}'
    path.write_text("\n".join(lines) + "\n")
    manifest = prepare_tokens(tmp_path / "tokens")
    assert manifest.rejected == {"missing field": 1, "too short": 1}
    assert sum(part["documents"] for part in manifest.parts.values()) == 59
    assert '"b.attributes.jsonl", "line": 4' in (tmp_path / "out" / "rejected.jsonl").read_text()


def check_alone(check):
    """Run a check on files of its own (for tests/mutants)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokens").mkdir()
        rows = write_corpus(folder / "text.jsonl", extra=['{"text": "hi", "domain": "news"}\n'])
        rows.append({"text": "hi", "domain": "news"})
        write_token_file(folder / "tokens" / "a", rows[:40])
        write_token_file(folder / "tokens" / "b", rows[40:], ".jsonl")
        globals()[check](folder)
