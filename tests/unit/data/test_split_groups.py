"""Groups that are held out together: against a loop over groups, and through a preparation."""

import json

import numpy as np
import pytest
from test_prepare import DomainOf, documents_of, write_references

from mads.data.documents import JsonlSource
from mads.data.prepare import prepare
from mads.data.references import JsonlReferences
from mads.data.schema import DataError, Manifest
from mads.data.settings import PrepareSettings
from mads.data.split import heldout_documents, heldout_groups
from mads.noise import hash64


def hashes(values):
    return hash64(9, "test", 0, np.asarray(values))


def check_groups_stay_together():
    """Three domains: many groups, one group, and one large group beside many small ones. Some texts are there twice."""
    rng = np.random.default_rng(0)
    codes = rng.permutation(np.repeat([0, 1, 2], [400, 60, 300]))
    groups = np.where(
        codes == 0,
        rng.integers(0, 40, 760),
        np.where(codes == 1, 7, np.where(rng.random(760) < 0.3, 5, rng.integers(0, 90, 760))),
    )
    keys = hashes(np.arange(760))
    copies = rng.choice(760, 12, replace=False)
    keys[copies[:6]] = keys[copies[6:]]
    held, counts = heldout_groups(keys, codes, hashes(groups), 0.1, seed=4)
    assert counts[1] is None and set(counts) == {0, 1, 2}
    for domain in (0, 2):
        own = codes == domain
        texts = len(np.unique(keys[own]))
        sizes = {g: len(np.unique(keys[own & (groups == g)])) for g in np.unique(groups[own])}
        order = sorted(
            (g for g in sizes if sizes[g] <= 0.1 * texts), key=lambda g: int(hash64(4, "heldout-group", domain, hashes([g]))[0])
        )
        expected, total = set(), 0
        for group in order:
            if total < 0.1 * texts:
                expected.add(group)
                total += sizes[group]
        for group in sizes:
            inside = own & (groups == group)
            assert held[inside].all() if group in expected else not held[inside & ~np.isin(keys, keys[copies])].any(), (
                domain,
                group,
            )
        assert counts[domain] == (len(expected), len(sizes)) and 0 < len(expected) < len(sizes)
    single = codes == 1
    alone = heldout_documents(keys[single], codes[single], 0.1, 4)
    assert np.array_equal(held[single] | np.isin(keys[single], keys[copies]), alone | np.isin(keys[single], keys[copies]))
    assert not set(keys[held]) & set(keys[~held]), "a text on both sides"


def test_groups_stay_together():
    check_groups_stay_together()


def test_nothing_is_held_out_of_nothing():
    empty = np.zeros(0, np.uint64)
    held, counts = heldout_groups(empty, empty, empty, 0.1, 0)
    assert len(held) == 0 and counts == {}


def corpus(path):
    rng = np.random.default_rng(2)
    words = "rain fell softly over the old harbour while boats turned and import numpy return self value".split()
    rows = []
    for i in range(120):
        text = " ".join(rng.choice(words, rng.integers(20, 60))) + f" #{i}"
        domain = "news" if i % 3 else "code"
        rows.append({"text": text, "domain": domain, "work": int(i % 17) if domain == "news" else "alone"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def run(folder, **changes):
    settings = dict(vocab_size=320, seq_length=32, min_sample_tokens=8, heldout_fraction=0.1, heldout_group_field="work")
    fields = changes.pop("fields", ["work"])
    said = []
    manifest = prepare(
        folder / "out",
        JsonlSource([str(folder / "corpus.jsonl")], attribute_fields=fields),
        {"domain": DomainOf()},
        JsonlReferences({"task": str(folder / "task.jsonl")}),
        PrepareSettings(**settings),
        progress=said.append,
        **changes,
    )
    return manifest, said


def test_a_preparation_holds_out_whole_works_and_says_where_it_cannot(tmp_path):
    rows = corpus(tmp_path / "corpus.jsonl")
    write_references(tmp_path / "task.jsonl")
    manifest, said = run(tmp_path)
    train, held = ({t for t, _, _ in documents_of(tmp_path / "out", part)[1]} for part in ("train", "heldout"))
    assert len(train) + len(held) == 120 and not train & held
    works = [{(r["domain"], r["work"]) for r in rows if r["domain"] == "news" and r["text"] in part} for part in (train, held)]
    assert works[1] and not works[0] & works[1]
    assert {r["work"] for r in rows if r["domain"] == "code" and r["text"] in held} == {"alone"}
    assert manifest.generations[0]["heldout_groups"] == {"news": [len(works[1]), 17], "code": None}
    assert any(line.startswith("held out whole groups of 'work': news") for line in said)
    assert any("held out by document, for want of small groups of 'work': code" in line for line in said)
    assert Manifest.read(tmp_path / "out").generations[0]["source"]["settings"]["heldout_group_field"] == "work"
    with pytest.raises(DataError, match="cannot be kept when documents are added"):
        run(tmp_path, append=True)
    with pytest.raises(DataError, match="'work' is not among the fields that the source gives"):
        run(tmp_path, fields=[])


def test_directories_from_before_the_key_keep_their_identity():
    assert "heldout_group_field" not in PrepareSettings(vocab_size=320, seq_length=32).identity()
