import hashlib
import json

import numpy as np
import pytest

from mads.data.documents import JsonlSource
from mads.data.pool import Pool
from mads.data.prepare import prepare
from mads.data.prepare.board import Board, open_board, write_json
from mads.data.references import JsonlReferences
from mads.data.schema import AttributeSchema, DataError, Manifest
from mads.data.settings import PrepareSettings
from mads.data.tokenizer import Tokenizer, train_sentencepiece
from mads.label.base import FittedLabeller

SETTINGS = dict(
    vocab_size=320,
    seq_length=32,
    min_sample_tokens=8,
    heldout_fraction=0.1,
    shard_megabytes=0.006,
    seed=3,
    max_rejected_fraction=0.2,
)
WORDS = "rain fell softly over the old harbour while boats turned and import numpy return self value budget vote law 7 42".split()


class LengthLabeller(FittedLabeller):
    """Label by the number of characters, value = that number: a function of the text that the test can compute itself."""

    name = "length"
    _fitted = True
    seen = ()

    def _restore(self, facts, arrays):
        pass

    def fit(self, documents):
        self.seen = [d.text for d in documents]

    def label(self, documents):
        sizes = np.array([len(d.text) for d in documents])
        return (sizes > 200).astype(np.uint16), sizes.astype(np.float32)

    def schema(self):
        return AttributeSchema("length", ("short", "long"), continuous=True, provenance={"border": 200})


class DomainOf(FittedLabeller):
    name = "domain"

    def fit(self, documents):
        self._restore({"names": sorted({d.domain for d in documents})}, {})
        self._fitted = True

    def _facts(self):
        return {"names": self.names}

    def _restore(self, facts, arrays):
        self.names = facts["names"]

    def label(self, documents):
        return np.array([self.names.index(d.domain) for d in documents], dtype=np.uint16), None

    def schema(self):
        return AttributeSchema("domain", tuple(self.names))


def write_corpus(path, seed=0, count=60, domains=("news", "code"), extra=()):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(12, 120))) + f" #{i}\n" for i in range(count)]
    rows = [{"text": text, "domain": domains[i % len(domains)]} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + "".join(extra))
    return rows


def write_references(path, count=30):
    path.write_text("".join(json.dumps({"text": f"the harbour \u2028 lies in district {i}"}) + "\n" for i in range(count)))


@pytest.fixture
def corpus(tmp_path):
    write_references(tmp_path / "task.jsonl")
    return write_corpus(tmp_path / "corpus.jsonl", extra=['{"text": 5}\n', "not json\n", '{"text": "tiny", "domain": "news"}\n'])


def run(tmp_path, name="out", labellers=None, references=True, lines=None, attribute_settings=None, **changes):
    return prepare(
        tmp_path / name,
        JsonlSource([str(tmp_path / "corpus.jsonl")]),
        labellers if labellers is not None else {"length": LengthLabeller(), "domain": DomainOf()},
        JsonlReferences({"task": str(tmp_path / "task.jsonl")}) if references else None,
        PrepareSettings(**{**SETTINGS, **changes}),
        attribute_settings,
        progress=(lines if lines is not None else []).append,
    )


def documents_of(directory, part):
    """The texts back from the token files, by the document index."""
    manifest = Manifest.read(directory, verify=True)
    tokenizer = Tokenizer.open(directory / manifest.tokenizer["file"])
    pool, texts, place = Pool.open(directory, part), [], 0
    for shard in pool.readers:
        for first, last in zip(shard.documents[:-1], shard.documents[1:]):
            tokens = np.concatenate([shard[i] for i in range(first, last)])
            assert tokens[-1] == manifest.tokenizer["eod"] and (tokens[:-1] != manifest.tokenizer["eod"]).all()
            texts.append((tokenizer.decode(tokens[:-1]), place + first, place + last))
        place += len(shard)
    return pool, texts


def test_every_document_is_in_one_part_or_in_the_rejects(tmp_path, corpus):
    lines = []
    manifest = run(tmp_path, lines=lines)
    train, held = documents_of(tmp_path / "out", "train"), documents_of(tmp_path / "out", "heldout")
    texts = [t for t, _, _ in train[1] + held[1]]
    assert sorted(texts) == sorted(r["text"] for r in corpus)
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert sorted((r["reason"], r["line"]) for r in rejected) == [("malformed JSON", 62), ("too short", 63), ("wrong type", 61)]
    assert manifest.rejected == {"malformed JSON": 1, "too short": 1, "wrong type": 1}
    for part, (pool, documents) in (("train", train), ("heldout", held)):
        counts = manifest.parts[part]
        assert counts["documents"] == len(documents) and counts["samples"] == len(pool) and counts["tokens"] == pool.total_tokens
        assert np.max(pool.lengths) <= 32 and np.min(pool.lengths) >= 8
    assert len(manifest.parts["train"]["shards"]) > 2
    assert any("MB/s" in line for line in lines) and manifest.references["task"] == {
        part: sum(json.loads(r)["part"] == part for r in (tmp_path / "out/references/task.jsonl").read_text().splitlines())
        for part in ("direction", "audit", "report")
    }


def test_heldout_is_split_by_document_before_anything_is_fitted(tmp_path, corpus):
    labeller = LengthLabeller()
    run(tmp_path, labellers={"length": labeller, "domain": DomainOf()})
    (_, train), (_, held) = documents_of(tmp_path / "out", "train"), documents_of(tmp_path / "out", "heldout")
    held_texts = {t for t, _, _ in held}
    domain = {r["text"]: r["domain"] for r in corpus}
    # one tenth of 30 texts of code and of 31 of news, "tiny" included
    assert [sum(domain[t] == d for t in held_texts) for d in ("code", "news")] == [3, 3]
    assert not held_texts & set(labeller.seen) and len(labeller.seen) >= len(train)
    # the tokenizer saw training documents only: the same bytes come from them alone
    order = [r["text"] for r in corpus if r["text"] not in held_texts]
    train_sentencepiece(order + (["tiny"] if "tiny" in labeller.seen else []), 320, tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == (tmp_path / "out/tokenizer.model").read_bytes()


def test_d3_labels_of_a_document_are_on_all_of_its_samples(tmp_path, corpus):
    run(tmp_path)
    domain = {r["text"]: r["domain"] for r in corpus}
    for part in ("train", "heldout"):
        pool, documents = documents_of(tmp_path / "out", part)
        for text, first, last in documents:
            assert pool.values("length")[first:last].tolist() == [len(text)] * (last - first)
            assert pool.codes("length")[first:last].tolist() == [int(len(text) > 200)] * (last - first)
            assert {pool.labels("domain")[c] for c in pool.codes("domain")[first:last]} == {domain[text]}


def test_equal_texts_never_lie_on_both_sides(tmp_path):
    rows = write_corpus(tmp_path / "corpus.jsonl", count=40)
    write_references(tmp_path / "task.jsonl")
    again = [{"text": r["text"], "domain": "code" if r["domain"] == "news" else "news"} for r in rows]
    with open(tmp_path / "corpus.jsonl", "a") as f:
        f.writelines(json.dumps(r) + "\n" for r in again)
    run(tmp_path, heldout_fraction=0.3, exact_duplicates=False)
    train, held = ({t for t, _, _ in documents_of(tmp_path / "out", part)[1]} for part in ("train", "heldout"))
    assert held and train and not train & held


def hashes(directory):
    files = [p for p in directory.rglob("*") if p.is_file()]
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_input_gives_the_same_bytes_in_small_batches_too(tmp_path, corpus, monkeypatch):
    run(tmp_path, "a")
    run(tmp_path, "b")
    monkeypatch.setattr("mads.data.prepare.shards._BATCH_BYTES", 500)
    run(tmp_path, "c")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b") == hashes(tmp_path / "c")
    assert not any("work" in n or n.endswith(".tmp") for n in hashes(tmp_path / "a"))


def test_prepared_already_returns_at_once_and_other_settings_are_refused(tmp_path, corpus):
    first, lines = run(tmp_path, attribute_settings={"length": {"border": 200}}), []
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    again = run(tmp_path, lines=lines, attribute_settings={"length": {"border": 200}})
    assert again == first and len(lines) == 1 and "prepared already" in lines[0]
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    with pytest.raises(DataError, match=r"settings.seq_length: 32 there, 48 asked for.*Choose another data.dir, or remove"):
        run(tmp_path, seq_length=48, attribute_settings={"length": {"border": 200}})
    with pytest.raises(DataError, match=r"attributes.length.border: 200 there, 300 asked for"):
        run(tmp_path, attribute_settings={"length": {"border": 300}})
    with open(tmp_path / "corpus.jsonl", "a") as f:
        f.write(json.dumps({"text": "one more line of text that is long enough", "domain": "news"}) + "\n")
    with pytest.raises(DataError, match=r"source.files.0.bytes"):
        run(tmp_path, attribute_settings={"length": {"border": 200}})


class Interrupted(Exception):
    pass


def test_an_interrupted_preparation_starts_again_cleanly(tmp_path, corpus):
    class Broken(LengthLabeller):
        def label(self, documents):
            raise Interrupted

    run(tmp_path, "whole")
    with pytest.raises(Interrupted):
        run(tmp_path, labellers={"length": Broken(), "domain": DomainOf()})
    out = tmp_path / "out"
    assert not (out / "manifest.json").exists() and (out / "tokenizer.model").exists()
    with pytest.raises(DataError, match="mads prepare"):
        Pool.open(out)
    (out / "train").mkdir(exist_ok=True)
    (out / "train/shard-00099.bin").write_bytes(b"left over")
    (out / "train/shard-00099.idx.tmp").write_bytes(b"left over")
    (out / "notes.txt").write_text("mine")
    lines = []
    run(tmp_path, lines=lines)  # other settings: the class of a labeller is one
    assert any("removed" in line for line in lines) and (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert hashes(out) == hashes(tmp_path / "whole")


def test_an_interrupted_preparation_goes_on_where_it_was(tmp_path, corpus, monkeypatch):
    calls = []

    def breaks(self, documents, label=LengthLabeller.label):
        calls.append(len(documents))
        if len(calls) > 2:
            raise Interrupted
        return label(self, documents)

    lines = []
    run(tmp_path, "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(LengthLabeller, "label", breaks)
        run(tmp_path)
    shards = sorted((tmp_path / "out/train").glob("shard-*.bin"))
    before = {path: path.stat().st_mtime_ns for path in [*shards, tmp_path / "out/tokenizer.model"]}
    assert len(shards) == 2
    (tmp_path / "out/train/shard-00099.bin").write_bytes(b"left over")
    run(tmp_path, lines=lines)
    assert "going on with the unfinished preparation" in lines[0] and any("removed 1 files" in line for line in lines)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_a_damaged_directory_is_prepared_again(tmp_path, corpus):
    run(tmp_path)
    good = hashes(tmp_path / "out")
    path = tmp_path / "out/train/shard-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    lines = []
    run(tmp_path, lines=lines)
    assert "should have" in lines[0] and hashes(tmp_path / "out") == good


def test_foreign_directories_are_left_alone(tmp_path, corpus):
    (tmp_path / "out/references").mkdir(parents=True)
    (tmp_path / "out/references/mine.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"no preparation wrote \(references\); choose another data.dir"):
        run(tmp_path)
    assert (tmp_path / "out/references/mine.jsonl").read_text() == "{}"
    (tmp_path / "web").mkdir()
    (tmp_path / "web/manifest.json").write_text('{"name": "app"}')
    with pytest.raises(DataError, match="is not a manifest of mads"):
        run(tmp_path, "web")


def test_a_directory_that_another_process_prepares_with_other_settings_is_left_alone(tmp_path, corpus, monkeypatch):
    elsewhere = {"machine": "another", "pid": 1, "started": "1"}
    job = open_board(tmp_path / "busy", {"generation": 0, "settings": {"seq_length": 64}})
    assert job["settings"] == {"seq_length": 64}
    write_json(tmp_path / "busy/work/claims/survey-00000", elsewhere)
    with pytest.raises(DataError, match=r"another process is preparing .* with other settings .*it is at survey-00000"):
        run(tmp_path, "busy")
    assert (tmp_path / "busy/work/claims/survey-00000").exists()
    # not renewed for too long: its owner is gone, whatever the clocks of the two machines say
    monkeypatch.setattr("mads.data.prepare.board.STALE_S", 0.0)
    board = Board(tmp_path / "busy")
    assert not board.claim("survey-00000") and board.claim("survey-00000")


def test_bad_input_is_explained(tmp_path):
    write_references(tmp_path / "task.jsonl")
    (tmp_path / "corpus.jsonl").write_text("")
    with pytest.raises(DataError, match="the source holds no document"):
        run(tmp_path, "empty")
    (tmp_path / "corpus.jsonl").write_text('{"txt": "a"}\n' * 20)
    with pytest.raises(DataError, match="20 of 20 inputs were rejected"):
        run(tmp_path, "field")
    write_corpus(tmp_path / "corpus.jsonl")
    with pytest.raises(DataError, match=r"document has min_sample_tokens=4000 tokens: the longest of 60 documents has \d+"):
        run(tmp_path, "long", seq_length=8000, min_sample_tokens=4000)
    with pytest.raises(DataError, match="vocab_size=100000 is more than the training text can fill"):
        run(tmp_path, "vocabulary", vocab_size=100_000)
    lines = []
    run(tmp_path, "short", seq_length=4096, lines=lines, references=False)
    assert any("no document fills seq_length=4096; the longest sample has" in line for line in lines)
    assert any("no reference tasks" in line for line in lines)
    short = "".join(json.dumps({"text": f"w{i}", "domain": "news"}) + "\n" for i in range(40))
    (tmp_path / "corpus.jsonl").write_text((tmp_path / "corpus.jsonl").read_text() + short)
    with pytest.raises(DataError, match="40 of 100 inputs were rejected.*40 too short"):
        run(tmp_path, "many")


def test_few_documents_in_a_domain_are_all_trained_on(tmp_path):
    write_references(tmp_path / "task.jsonl")
    write_corpus(tmp_path / "corpus.jsonl", count=27, domains=("news", "code", "rare"))
    lines = []
    run(tmp_path, lines=lines, heldout_fraction=0.5)
    assert any("nothing is held out of 3 domains" in line for line in lines)
    with pytest.raises(DataError, match="holds no sample"):
        Pool.open(tmp_path / "out", "heldout")


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(min_sample_tokens=20), "min_sample_tokens 20 must be between 2 and 16"),
        (dict(seq_length=1), "seq_length 1 must be"),
        (dict(heldout_fraction=0.9), "heldout_fraction 0.9"),
        (dict(tokenizer_kind="huggingface"), "only sentencepiece is trained here"),
        (dict(tokenizer_path="no/such.model"), "no tokenizer file no/such.model"),
        (dict(tokenizer_megabytes=0), "train_megabytes 0"),
    ],
)
def test_impossible_settings_name_the_numbers(changes, match):
    with pytest.raises(DataError, match=match):
        PrepareSettings(**{**SETTINGS, **changes})


def test_a_given_tokenizer_is_used_and_must_fit_the_model(tmp_path, corpus):
    run(tmp_path)
    given = tmp_path / "given.model"
    given.write_bytes((tmp_path / "out/tokenizer.model").read_bytes())
    with pytest.raises(DataError, match="tokenizer has 320 ids, model.vocab_size is 319"):
        run(tmp_path, "small", tokenizer_path=str(given), vocab_size=319)
    manifest = run(tmp_path, "given", tokenizer_path=str(given), vocab_size=512)
    expected = {"kind": "sentencepiece", "file": "tokenizer.model", "vocab_size": 320, "eod": 2, "lossless": True}
    assert manifest.tokenizer == expected
    assert manifest.source["settings"]["tokenizer_path"]["file"] == "given.model"
    assert str(tmp_path) not in (tmp_path / "given/manifest.json").read_text()
    one, two = Manifest.read(tmp_path / "out"), manifest
    assert one.files["train/shard-00000.bin"] == two.files["train/shard-00000.bin"]
