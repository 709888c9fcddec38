"""Attributes of a prepared directory, one at a time: the right samples get them, tokens stay, a killed run changes nothing."""

import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from prepared_support import SHARDS, contents, write_prepared

from mads.cli import main
from mads.data.pool import Pool
from mads.data.schema import DataError, Manifest
from mads.label import relabel
from mads.label.base import FittedLabeller, load_labeller
from mads.label.domain import DomainLabeller, PathDomain
from mads.label.given import GivenLabel, GivenScore
from mads.label.linear import GoodAgainstWeb
from mads.label.ngram import NGramPerplexity
from mads.label.prepared import PreparedDocuments
from mads.label.relabel import label_prepared, remove_attributes
from mads.label.topic import TopicLabeller

PERPLEXITY = dict(columns=1 << 12, bins=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared") / "data"
    return path, write_prepared(path)


@pytest.fixture
def directory(source, tmp_path):
    shutil.copytree(source[0], tmp_path / "data")
    return tmp_path / "data"


def label(directory, workers=1, columns=None, **labellers):
    return label_prepared(directory, labellers, columns, workers=workers, progress=lambda line: None)


def by_document(directory, part, name):
    """(code, value or None) of each document, and whether all its samples have them."""
    pool, place, out = Pool.open(directory, part), 0, []
    schema = next(a for a in pool.manifest.attributes if a.name == name)
    for reader in pool.readers:
        for first, last in zip(reader.documents[:-1], reader.documents[1:]):
            own = np.arange(place + first, place + last)
            values = set(pool.values(name)[own].tolist()) if schema.continuous else {None}
            codes = set(pool.codes(name)[own].tolist())
            assert len(codes) == len(values) == 1
            out.append((codes.pop(), values.pop()))
        place += len(reader)
    return out


def test_documents_come_back_from_the_tokens(source):
    path, documents = source
    prepared = PreparedDocuments(path)
    for place, own in SHARDS.items():
        back = list(prepared.read(*place))
        assert [(d.text, d.domain) for d in back] == [(d.text, d.domain) for d in documents[own]]


def test_every_sample_has_the_label_of_its_document_and_tokens_stay(source, directory):
    before = contents(directory)
    label(directory, perplexity=NGramPerplexity(**PERPLEXITY), topic=TopicLabeller(topics=4, dimensions=8))
    manifest, after = Manifest.read(directory, verify=True), contents(directory)
    assert [a.name for a in manifest.attributes] == ["domain", "perplexity", "topic"]
    assert {k: v for k, v in after.items() if k in before and k != "manifest.json"} == {
        k: v for k, v in before.items() if k != "manifest.json"
    }
    for name, labeller in (("perplexity", NGramPerplexity(**PERPLEXITY)), ("topic", TopicLabeller(topics=4, dimensions=8))):
        load_labeller(directory / "labellers" / f"{name}.npz", labeller)
        codes, values = labeller.label(source[1])  # the texts as they were before they became tokens
        expected = list(zip(codes.tolist(), values.tolist() if values is not None else [None] * len(codes)))
        assert by_document(directory, "train", name) == expected[:100]
        assert by_document(directory, "heldout", name) == expected[100:]
        schema = next(a for a in manifest.attributes if a.name == name)
        assert schema.provenance["version"] == 1 and len(schema.provenance["state"]) == 64


def test_any_number_of_workers_writes_the_same_bytes(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "other")
    for path, workers in ((directory, 1), (tmp_path / "other", 3)):
        label(path, workers, perplexity=NGramPerplexity(**PERPLEXITY))
    assert contents(directory) == contents(tmp_path / "other")


def test_replacing_keeps_the_place_and_what_a_running_job_has_mapped(directory):
    label(directory, topic=TopicLabeller(topics=4, dimensions=8))
    label(directory, perplexity=NGramPerplexity(**PERPLEXITY))
    pool = Pool.open(directory)
    before, fingerprint = np.array(pool.codes("topic")), pool.attribute_fingerprint("topic")
    label(directory, topic=TopicLabeller(topics=6, dimensions=8))
    assert np.array_equal(np.array(pool.codes("topic")), before)
    fresh = Pool.open(directory)
    assert fresh.attributes == ("domain", "topic", "perplexity") and len(fresh.labels("topic")) == 6
    assert fresh.attribute_fingerprint("topic") != fingerprint and fresh.fingerprint == pool.fingerprint
    manifest = Manifest.read(directory, verify=True)
    assert set(contents(directory)) == {*manifest.files, "manifest.json"}  # nothing of the old columns is left
    label(directory, topic=TopicLabeller(topics=4, dimensions=8))
    assert next(a for a in Manifest.read(directory, verify=True).attributes if a.name == "topic").revision == 2


def test_removing_leaves_no_trace(directory):
    before = contents(directory)
    label(directory, topic=TopicLabeller(topics=4, dimensions=8))
    remove_attributes(directory, ["topic"])
    assert contents(directory) == before
    with pytest.raises(DataError, match="no attribute 'topic' to remove; it has domain"):
        remove_attributes(directory, ["topic"])


class Killed(BaseException):
    """Stands for SIGKILL inside of this process, where mutants can be applied."""


def kill():
    """End as SIGKILL does: nobody cleans up on the way out."""
    relabel._delete_strays = lambda *arguments: None
    raise Killed


def _sigkill():
    os.kill(os.getpid(), signal.SIGKILL)


class Fatal(FittedLabeller):
    """Ends the process, or raises, at the n-th batch."""

    name = "fatal"

    def __init__(self, at, raising=False):
        self.at, self.raising, self.calls = at, raising, 0

    def fit(self, documents):
        self._fitted = True

    def label(self, documents):
        self.calls += 1
        if self.calls >= self.at:
            if self.raising:
                raise DataError("no label fits")
            kill()
        return np.zeros(len(documents), np.uint16), None

    def schema(self):
        from mads.data.schema import AttributeSchema

        return AttributeSchema("fatal", ("only",))

    def _restore(self, facts, arrays):
        pass


def killed_at_manifest(directory, when):
    """Label, and die before or after the manifest is replaced."""
    original = Manifest.write

    def write(self, path):
        if when == "after":
            original(self, path)
        kill()

    Manifest.write = write
    label(directory, topic=TopicLabeller(topics=6, dimensions=8))


def killed_in_labelling(directory):
    label(directory, topic=Fatal(at=2))


def in_this_process(function, *args):
    real = relabel._delete_strays, Manifest.write
    try:
        with pytest.raises(Killed):
            function(*args)
    finally:
        relabel._delete_strays, Manifest.write = real


def _really(function, *args):
    global kill
    kill = _sigkill
    function(*args)


def in_child(function, *args):
    """A process of its own; not a fork, which would copy locks of threads that libraries have started."""
    child = multiprocessing.get_context("spawn").Process(target=_really, args=(function, *args))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL


def check_that_a_killed_run_leaves_the_directory_as_it_was(directory, killed=in_this_process):
    label(directory, topic=TopicLabeller(topics=4, dimensions=8))
    before = contents(directory)
    for function, args in ((killed_in_labelling, ()), (killed_at_manifest, ("before",))):
        killed(function, directory, *args)
        assert Manifest.read(directory, verify=True).fingerprint == json.loads(before["manifest.json"])["fingerprint"]
        assert {name: after for name, after in contents(directory).items() if name in before} == before
        assert len(Pool.open(directory).labels("topic")) == 4


def check_that_a_killed_run_leaves_a_fresh_directory_as_it_was(folder):
    write_prepared(folder / "fresh")
    check_that_a_killed_run_leaves_the_directory_as_it_was(folder / "fresh")


def test_a_killed_run_leaves_the_directory_as_it_was_and_the_next_one_succeeds(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "undisturbed")
    check_that_a_killed_run_leaves_the_directory_as_it_was(directory, in_child)
    in_child(killed_at_manifest, directory, "after")
    assert len(Pool.open(directory).labels("topic")) == 6  # the new manifest is there: so is all that it names
    label(directory, topic=TopicLabeller(topics=4, dimensions=8))
    manifest = Manifest.read(directory, verify=True)
    assert set(contents(directory)) == {*manifest.files, "manifest.json"}
    for topics in (4, 6, 4):
        label(tmp_path / "undisturbed", topic=TopicLabeller(topics=topics, dimensions=8))
    assert contents(tmp_path / "undisturbed") == contents(directory)


def test_a_labeller_that_fails_leaves_nothing_behind(directory):
    before = contents(directory)
    with pytest.raises(DataError, match="no label fits"):
        label(directory, topic=Fatal(at=2, raising=True))
    assert contents(directory) == before


def test_two_cannot_change_a_directory_at_once(directory):
    import fcntl

    before = contents(directory)
    with open(directory / "labelling", "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is labelling"):
            label(directory, topic=TopicLabeller(topics=4, dimensions=8))
        with pytest.raises(DataError, match="another process is labelling"):
            remove_attributes(directory, ["domain"])
    assert contents(directory) == before
    label(directory, topic=TopicLabeller(topics=4, dimensions=8))
    assert not (directory / "labelling").exists()


def test_what_a_prepared_directory_does_not_have_is_said(directory):
    before = contents(directory)
    for labeller, complaint in (
        (GivenScore("score", [0, 5]), "data.attributes.new.column=FILE"),
        (PathDomain("(?P<domain>[^/]+)/"), "reads paths"),
    ):
        with pytest.raises(DataError, match=complaint):
            label(directory, new=labeller)
    with pytest.raises(DataError, match="needs the attribute 'domain'"):
        label(directory, domain=DomainLabeller())
    with pytest.raises(DataError, match="file name"):
        label(directory, **{"a/b": TopicLabeller()})
    assert contents(directory) == before


def test_domains_come_from_the_attribute(directory):
    label(directory, origin=DomainLabeller(), good=GoodAgainstWeb(good_domains=["law"], columns=1 << 12))
    assert by_document(directory, "train", "origin") == by_document(directory, "train", "domain")
    law = [
        code
        for (code, _), (domain, _) in zip(by_document(directory, "train", "good"), by_document(directory, "train", "domain"))
        if domain == 1
    ]
    assert np.mean(law) > 2


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_given_columns_come_from_a_file_by_document(directory, tmp_path, ending, capsys):
    scores = np.random.default_rng(0).uniform(0, 5, 120).round(3).tolist()
    topics = [("a", "b", "c")[i % 3] for i in range(120)]
    path = tmp_path / f"given.{ending}"
    if ending == "parquet":
        pa.parquet.write_table(pa.table({"score": scores, "topic": topics}), path)
    else:
        path.write_text("".join(json.dumps({"score": s, "topic": t}) + "\n" for s, t in zip(scores, topics)))
    overrides = [
        "data.attributes.score._target_=mads.label.given.GivenScore",
        "data.attributes.score.field=score",
        "data.attributes.score.edges=[0,1,2,3,4,5]",
        f"data.attributes.score.column={path}",
        "data.attributes.topic._target_=mads.label.given.GivenLabel",
        "data.attributes.topic.field=topic",
        f"data.attributes.topic.column={path}",
    ]
    assert main(["label", "data=prepared", f"data.dir={directory}", *overrides]) == 0
    found = [*by_document(directory, "train", "score"), *by_document(directory, "heldout", "score")]
    assert [v for _, v in found] == pytest.approx(scores) and [c for c, _ in found] == [int(s) for s in scores]
    assert [c for c, _ in by_document(directory, "heldout", "topic")] == [i % 3 for i in range(100, 120)]
    if ending == "parquet":
        pa.parquet.write_table(pa.table({"score": scores[1:], "topic": topics[1:]}), path)
        assert main(["label", "data=prepared", f"data.dir={directory}", *overrides]) == 2
        assert "has 119 rows" in capsys.readouterr().err


def test_a_sample_to_learn_from_holds_every_domain_and_value(source):
    columns = {"topic": ["rare" if i == 77 else "common" for i in range(120)]}
    sample = PreparedDocuments(source[0], columns).fit_sample(1.0, 0, ["topic"])
    assert {d.domain for d in sample} == {d.domain for d in source[1]} and len(sample) <= 7
    assert {d.fields["topic"] for d in sample} == {"rare", "common"}
    labeller = GivenLabel("topic")
    labeller.fit(sample)
    assert labeller.schema().labels == ("common", "rare")


def test_documents_that_are_added_meanwhile_are_not_lost(directory):
    class Slow(DomainLabeller):
        """While it labels, the directory gets another manifest, as `mads prepare --append` gives it one."""

        def label(self, documents):
            manifest = Manifest.read(directory)
            if len(manifest.generations) == 1:
                first = manifest.files["train/shard-00000.idx"]
                manifest.files["train/added.idx"] = first
                shutil.copyfile(directory / "train/shard-00000.idx", directory / "train/added.idx")
                manifest.generations.append(manifest.generations[0])
                manifest.write(directory)
            return super().label(documents)

    with pytest.raises(DataError, match="has changed while it was labelled"):
        label(directory, origin=Slow())
    manifest = Manifest.read(directory)
    assert len(manifest.generations) == 2 and "origin" not in {a.name for a in manifest.attributes}
    assert not list(directory.glob("*/attributes/origin*")) and not list(directory.glob("labellers/origin*"))
