"""Likeness to the reference tasks: against plain Python, sample by sample, and through both ways into a prepared directory."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from mads.data.documents import JsonlSource
from mads.data.pool import Pool
from mads.data.prepare import prepare
from mads.data.references import JsonlReferences
from mads.data.schema import DataError
from mads.data.settings import PrepareSettings
from mads.data.tokenizer import Tokenizer
from mads.label.base import load_labeller, save_labeller, without_end
from mads.label.domain import DomainLabeller
from mads.label.likeness import ReferenceLikeness
from mads.label.relabel import label_prepared

V = 30


def draw(rng, count, matrix, least=2, most=40):
    """Samples of a Markov chain."""
    out = []
    for _ in range(count):
        tokens, length = [int(rng.integers(len(matrix)))], rng.integers(least, most)
        while len(tokens) < length:
            tokens.append(int(rng.choice(len(matrix), p=matrix[tokens[-1]])))
        out.append(np.array(tokens, dtype=np.uint16))
    return out


def chain(rng, sharpness):
    weights = np.exp(sharpness * rng.standard_normal((V, V)))
    return weights / weights.sum(1, keepdims=True)


def example(seed=0, pool=120):
    """(labeller, tasks, pool samples): two tasks of very different sizes."""
    rng = np.random.default_rng(seed)
    near, far = chain(rng, 1.5), chain(rng, 1.5)
    tasks = {"long": draw(rng, 50, near), "short": draw(rng, 4, near, 3, 8)}
    samples = draw(rng, pool // 2, near) + draw(rng, pool // 2, far)
    return ReferenceLikeness(smoothing=5.0, bins=4, max_fit_tokens=1000, seed=seed), tasks, samples


def counted(samples):
    """(tokens, pairs, contexts) of samples."""
    tokens = Counter(w for s in samples for w in s.tolist())
    pairs = Counter(pair for s in samples for pair in zip(s.tolist(), s.tolist()[1:]))
    contexts = Counter(c for s in samples for c in s.tolist()[:-1])
    return tokens, pairs, contexts


def plain_p(counts, before, w, smoothing):
    """Of the pool's model."""
    tokens, pairs, contexts = counts
    p = (tokens[w] + 1) / (sum(tokens.values()) + V)
    return p if before is None else (pairs[before, w] + smoothing * p) / (contexts[before] + smoothing)


def plain_task_p(counts, before, w, pool, trust):
    tokens, pairs, contexts = counts
    seen, of = (tokens[w], sum(tokens.values())) if before is None else (pairs[before, w], contexts[before])
    return (seen + trust * pool) / (of + trust)


def plain_value(sample, pool, tasks, smoothing):
    """tasks: (counts, trust) of each."""
    out, before = 0.0, None
    for w in sample.tolist():
        p = plain_p(pool, before, w, smoothing)
        out += math.log(sum(plain_task_p(counts, before, w, p, trust) for counts, trust in tasks) / len(tasks) / p)
        before = w
    return out / len(sample)


def plain_trust(texts, pool, smoothing):
    half = len(texts) // 2
    gains = {}
    for trust in [2.0**n for n in range(15)]:
        gains[trust] = sum(
            plain_value(text, pool, [(counted(one), trust)], smoothing) * len(text)
            for one, other in ((texts[:half], texts[half:]), (texts[half:], texts[:half]))
            for text in other
        )
    return max(gains, key=gains.get)


def check_values_equal_plain_python():
    labeller, tasks, samples = example()
    labeller.see_reference_tokens(tasks, V)
    labeller.fit(samples)
    learned = labeller.schema().provenance
    own = [s for s in samples if labeller._own[np.searchsorted(labeller._own, _id(s)) % len(labeller._own)] == _id(s)]
    assert learned["reference_tokens"] == sum(len(s) for t in tasks.values() for s in t)
    assert 20 < learned["fit_samples"] == len(own) < len(samples)
    assert learned["max_fit_tokens"] == 1000  # what was asked for stands beside what was found
    assert 1000 <= learned["fit_tokens"] == sum(map(len, own)) < 1040  # the last sample is whole
    every = ReferenceLikeness(smoothing=5.0, bins=4)
    every.see_reference_tokens(tasks, V)
    every.fit(samples[:30])  # less text than may be counted
    assert (every.schema().provenance["fit_samples"], every.schema().provenance["fit_tokens"]) == (
        30,
        sum(map(len, samples[:30])),
    )
    pool = counted(own)
    references = {name: (counted(texts), plain_trust(texts, pool, 5.0)) for name, texts in tasks.items()}
    assert learned["tasks"] == {name: trust for name, (_, trust) in references.items()}
    assert len(set(learned["tasks"].values())) == 2  # each task by its own text
    _, values = labeller.label(samples)
    for sample, value in zip(samples, values):
        others = counted([s for s in own if s is not sample])
        assert value == pytest.approx(plain_value(sample, others, list(references.values()), 5.0), abs=1e-5)


def _id(sample):
    from mads.label.likeness import _ids

    return _ids([sample])[0]


def check_that_a_value_does_not_depend_on_the_batch():
    labeller, tasks, samples = example(seed=1)
    labeller.see_reference_tokens(tasks, V)
    labeller.fit(samples)
    codes, values = labeller.label(samples)
    for at in (slice(0, 1), slice(7, 30), slice(50, 51)):
        again = labeller.label(samples[at])
        assert again[0].tobytes() == codes[at].tobytes() and again[1].tobytes() == values[at].tobytes()


def test_values_equal_plain_python():
    check_values_equal_plain_python()


def test_a_value_does_not_depend_on_the_batch():
    check_that_a_value_does_not_depend_on_the_batch()


def test_samples_of_the_references_kind_come_first():
    labeller, tasks, samples = example(seed=2, pool=400)
    labeller.see_reference_tokens(tasks, V)
    labeller.fit(samples)
    codes, values = labeller.label(samples)
    near, far = values[:200], values[200:]
    assert (near[:, None] > far[None, :]).mean() > 0.9  # area under the curve
    assert codes.max() == 3 and np.all(np.diff(codes[np.argsort(values)].astype(int)) >= 0)


def test_the_order_of_the_pool_and_of_the_tasks_plays_no_part(tmp_path):
    states = []
    for turn in (1, -1):
        labeller, tasks, samples = example(seed=3)
        labeller.see_reference_tokens(dict(list(tasks.items())[::turn]), V)
        labeller.fit(samples[::turn])
        states.append({name: array.tolist() for name, array in labeller.state().items() if name != "about"})
    assert states[0] == states[1]


def test_a_labeller_comes_back_bit_for_bit(tmp_path):
    labeller, tasks, samples = example(seed=4)
    labeller.see_reference_tokens(tasks, V)
    labeller.fit(samples)
    save_labeller(tmp_path / "likeness.npz", labeller)
    fresh = ReferenceLikeness(smoothing=5.0, bins=4, max_fit_tokens=1000, seed=4)
    load_labeller(tmp_path / "likeness.npz", fresh)
    assert fresh.schema() == labeller.schema()
    for one, other in zip(labeller.label(samples), fresh.label(samples)):
        assert one.tobytes() == other.tobytes()


def test_what_cannot_be_done_is_said():
    with pytest.raises(DataError, match="smoothing=0.0 and max_fit_tokens=9 must be positive"):
        ReferenceLikeness(smoothing=0.0, max_fit_tokens=9)
    labeller, tasks, samples = example()
    with pytest.raises(RuntimeError, match="before fit"):
        labeller.label(samples)
    with pytest.raises(DataError, match="there are 0 and"):
        labeller.fit(samples)
    labeller.see_reference_tokens(tasks, V)
    with pytest.raises(DataError, match="there are 2 and 5"):
        labeller.fit(samples[:5] * 6)
    labeller.see_reference_tokens({**tasks, "none": []}, V)
    with pytest.raises(DataError, match="'none' has no text"):
        labeller.fit(samples)
    labeller.see_reference_tokens(tasks, V)
    labeller.fit(samples)
    for wrong in (np.array([], np.uint16), np.array([3, V], np.uint16)):
        with pytest.raises(DataError, match="sample 1 has no token, or one that is not in the vocabulary of 30"):
            labeller.label([samples[0], wrong])


def test_the_end_of_a_document_is_no_part_of_a_sample():
    samples = [np.array([4, 2, 5]), np.array([5, 2]), np.array([2])]
    assert [s.tolist() for s in without_end(samples, 2)] == [[4, 2, 5], [5], [2]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of two vocabularies, and reference tasks that use the first one."""
    folder, rng = tmp_path_factory.mktemp("likeness"), np.random.default_rng(0)
    words = {kind: [f"{a}{b}{c}" for a in first for b in "aeiou" for c in second] for kind, first, second in _KINDS}

    def text(kind, length):
        return " ".join(rng.choice(words[kind], length)) + "."

    mixed = [" ".join((text("near", 60), text("far", 60))) for _ in range(40)]  # both kinds in one document
    texts = [text("near", 80) for _ in range(60)] + [text("far", 80) for _ in range(60)] + mixed
    domains = ["near"] * 60 + ["far"] * 60 + ["mixed"] * 40
    rows = [json.dumps({"text": t, "domain": d}) + "\n" for t, d in zip(texts, domains)]
    (folder / "corpus.jsonl").write_text("".join(rows))
    (folder / "task.jsonl").write_text("".join(json.dumps({"text": text("near", 30)}) + "\n" for _ in range(60)))
    return folder


_KINDS = (("near", "bdfgkl", "mnrst"), ("far", "vwxzjq", "chpyw"))


@pytest.fixture(scope="module")
def prepared(corpus):
    settings = PrepareSettings(400, seq_length=32, min_sample_tokens=4, heldout_fraction=0.2, shard_megabytes=0.05)
    references = JsonlReferences({"task": str(corpus / "task.jsonl")})
    labellers = {"likeness": ReferenceLikeness(bins=4)}
    prepare(corpus / "data", JsonlSource([str(corpus / "corpus.jsonl")]), labellers, references, settings, progress=[].append)
    return corpus / "data"


def recomputed(directory, part, folder):
    """What the kept labeller says of every sample of a part, from its tokens one by one."""
    labeller = ReferenceLikeness(bins=4)
    load_labeller(directory / "labellers" / f"{folder}.npz", labeller)
    pool, eod = Pool.open(directory, part), Pool.open(directory, part).manifest.tokenizer["eod"]
    tokens = [np.asarray(reader[row]) for reader in pool.readers for row in range(len(reader))]
    return [labeller.label([t[:-1] if t[-1] == eod else t]) for t in tokens]


def test_prepare_labels_every_sample_by_its_own_tokens(prepared):
    for part in ("train", "heldout"):
        pool = Pool.open(prepared, part)
        expected = recomputed(prepared, part, "likeness")
        assert len(pool) == len(expected) > 20
        assert pool.values("likeness")[:].tolist() == [float(values[0]) for _, values in expected]
        assert pool.codes("likeness")[:].tolist() == [int(codes[0]) for codes, _ in expected]
    assert len(pool.manifest.parts["train"]["shards"]) > 1
    tokenizer = Tokenizer.open(prepared / pool.manifest.tokenizer["file"])
    train = Pool.open(prepared)
    best = np.argsort(-train.values("likeness")[:])[: len(train) // 4]
    texts = [tokenizer.decode(t) for t in train.token_shards.tokens(np.sort(best))]
    assert sum(any(c in "vwxzjq" for c in t) for t in texts) < 0.1 * len(texts)  # half of a mixed document is far


def test_label_labels_every_sample_by_its_own_tokens(prepared):
    label_prepared(prepared, {"again": ReferenceLikeness(bins=4)}, progress=lambda line: None)
    for part in ("train", "heldout"):
        pool = Pool.open(prepared, part)
        assert pool.values("again")[:].tolist() == [float(values[0]) for _, values in recomputed(prepared, part, "again")]
    # both ways count the same text by the same measure; only the draw of the pool's samples is another
    assert np.corrcoef(pool.values("again")[:], pool.values("likeness")[:])[0, 1] > 0.97


def test_without_reference_tasks_there_is_nothing_to_be_like(corpus, tmp_path):
    """Neither when a directory is prepared, which says so, nor afterwards; and documents can be added as before."""
    settings, said = PrepareSettings(400, seq_length=32, min_sample_tokens=4), []
    source = JsonlSource([str(corpus / "corpus.jsonl")])
    labellers = {"likeness": ReferenceLikeness(), "domain": DomainLabeller()}
    manifest = prepare(tmp_path / "data", source, labellers, None, settings, progress=said.append)
    assert [schema.name for schema in manifest.attributes] == ["domain"]
    assert sum("attribute likeness, which is learned from them, is left out" in line for line in said) == 1
    again = prepare(tmp_path / "data", source, labellers, None, settings, progress=said.append)
    assert again.fingerprint == manifest.fingerprint
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": "bod dun fet gim " * 30, "domain": "near"}) + "\n")
    more = JsonlSource([str(tmp_path / "more.jsonl")])
    grown = prepare(tmp_path / "data", more, labellers, None, settings, progress=said.append, append=True)
    assert grown.parts["train"]["documents"] == manifest.parts["train"]["documents"] + 1
    with pytest.raises(DataError, match="has no reference tasks to learn from"):
        label_prepared(tmp_path / "data", {"likeness": ReferenceLikeness()}, progress=lambda line: None)
