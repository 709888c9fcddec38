"""Importance weights of hashed n-grams against plain dictionaries of counts."""

import hashlib
import json
import math
import re
from collections import Counter

import numpy as np
import pytest
from label_support import natural

from mads.data.documents import Document
from mads.data.references import direction_texts
from mads.data.schema import DataError
from mads.label.base import fit_labeller, load_labeller, save_labeller
from mads.label.dsir import DSIRImportance


def grams(text, order):
    """Words are runs of letters and digits, or of other signs; the texts here are ASCII."""
    words = re.findall(r"[a-z0-9_]+|[^a-z0-9_\s]+", text.lower())
    return [" ".join(words[i : i + k]) for k in range(1, order + 1) for i in range(len(words) - k + 1)]


def shares(texts, order, key):
    counted = Counter(key(gram) for text in texts for gram in grams(text, order))
    total = sum(counted.values())
    return {gram: count / total for gram, count in counted.items()}


def weights(documents, target, pool, order, smoothing, key):
    """log p_target(x) - log p_raw(x) of each document, one n-gram after the other."""
    p, q = shares(target, order, key), shares(pool, order, key)
    log = lambda counted, gram: math.log(counted.get(key(gram), 0) + smoothing)
    return [sum(log(p, gram) - log(q, gram) for gram in grams(d.text, order)) for d in documents]


def bucket_of(gram, buckets=10_000):
    return int(hashlib.sha256(gram.encode()).hexdigest(), 16) % buckets


def fitted(target, pool, **settings):
    labeller = DSIRImportance(**settings)
    labeller.see_references(target)
    labeller.fit(pool)
    return labeller


def check_against_dictionaries(order=2, smoothing=1e-8):
    target, pool = [d.text for d in natural(25, seed=5)], natural(40, seed=1)
    unseen = natural(4, seed=7) + [Document(text, "x", "made", 1) for text in ("Utterly new: words!", "moon", "", " \n")]
    texts = [d.text for d in pool]
    labeller = fitted(target, pool, order=order, smoothing=smoothing)
    found = labeller.label(unseen + pool[:3])[1]
    expected = weights(unseen + pool[:3], target, texts, order, smoothing, bucket_of)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
    assert found[5] != 0 and found[6] == found[7] == 0  # a text without words has no weight either way


@pytest.mark.parametrize("order, smoothing", [(1, 1e-8), (2, 1e-8), (3, 1e-3)])
def test_weights_are_those_of_dictionaries_of_buckets(order, smoothing):
    check_against_dictionaries(order, smoothing)


def test_without_collisions_they_are_those_of_the_ngrams_themselves():
    target, pool = [d.text for d in natural(25, seed=5)], natural(40, seed=1)
    labeller = fitted(target, pool, buckets=1 << 22, smoothing=1e-6)
    every = {gram for text in (*target, *(d.text for d in pool)) for gram in grams(text, 2)}
    assert len({bucket_of(gram, 1 << 22) for gram in every}) == len(every)  # by the seeds
    expected = weights(pool[:5], target, [d.text for d in pool], 2, 1e-6, str)
    np.testing.assert_allclose(labeller.label(pool[:5])[1], expected, rtol=1e-6)


def test_a_sum_by_default_and_a_mean_if_asked_for():
    target, pool = [d.text for d in natural(25, seed=5)], natural(40, seed=1)
    total, mean = (fitted(target, pool, per_ngram=value).label(pool)[1] for value in (False, True))
    np.testing.assert_allclose(total, mean * [len(grams(d.text, 2)) for d in pool], rtol=1e-5)
    twice = [Document(f"{d.text}\n{d.text}", "x", "made", 1) for d in pool]
    assert (np.abs(fitted(target, pool).label(twice)[1]) > 1.9 * np.abs(total)).mean() > 0.8


def test_text_like_the_target_weighs_more():
    pool = natural(150, seed=1)
    target = [d.text for d in natural(300, seed=8) if d.domain == "space"]
    values = fitted(target, pool, per_ngram=True).label(pool)[1]
    like = np.array([d.domain == "space" for d in pool])
    assert values[like].min() > values[~like].max()


def write_references(folder):
    """Two tasks whose parts speak of different things."""
    (folder / "references").mkdir(parents=True)
    for task in ("one", "two"):
        rows = []
        for part, word in (("direction", "rocket"), ("audit", "zebra"), ("report", "yacht")):
            rows += [{"id": f"{part}-{i}", "text": f"the {word} of {task} {i}", "part": part} for i in range(15)]
        (folder / "references" / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def check_only_the_direction_part_is_seen(folder):
    write_references(folder)
    texts = direction_texts(folder)
    assert texts == {task: sorted(f"the rocket of {task} {i}" for i in range(15)) for task in ("one", "two")}
    labeller, pool = DSIRImportance(), natural(40, seed=1)
    fit_labeller(folder, labeller, pool)
    odd = [Document(text, "x", "made", 1) for text in ("zebra", "yacht", "quokka")]
    values = labeller.label(odd)[1]
    assert values[0] == values[1] == values[2] == 0  # in neither, as what occurs nowhere
    assert labeller.schema().provenance["target_texts"] == 30


def test_only_the_direction_part_of_the_references_is_seen(tmp_path):
    check_only_the_direction_part_is_seen(tmp_path)


def test_a_target_of_ones_own_is_read_and_the_references_are_not(tmp_path):
    target, pool = natural(25, seed=5), natural(40, seed=1)
    path = tmp_path / "target.jsonl"
    path.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in target))
    given = DSIRImportance(target_paths=[str(path)])
    fit_labeller(tmp_path / "nowhere", given, pool)
    np.testing.assert_array_equal(given.label(pool)[1], fitted([d.text for d in target], pool).label(pool)[1])
    assert given.schema().provenance["target"] == "target_paths"


def check_that_labels_do_not_depend_on_the_batch():
    documents = natural(60, seed=4)
    labeller = fitted([d.text for d in natural(25, seed=5)], documents[:40])
    codes, values = labeller.label(documents)
    alone = [labeller.label([d]) for d in reversed(documents)][::-1]
    assert codes.tobytes() == np.concatenate([a[0] for a in alone]).tobytes()
    assert values.tobytes() == np.concatenate([a[1] for a in alone]).tobytes()


def test_labels_do_not_depend_on_the_batch():
    check_that_labels_do_not_depend_on_the_batch()


def test_bins_hold_equal_shares():
    documents = natural(200, seed=1)
    codes, _ = fitted([d.text for d in natural(25, seed=5)], documents, bins=4).label(documents)
    assert np.abs(np.bincount(codes, minlength=4) - 50).max() <= 3


def test_the_state_comes_back_without_the_target(tmp_path):
    pool = natural(40, seed=1)
    labeller, fresh = fitted([d.text for d in natural(25, seed=5)], pool), DSIRImportance()
    save_labeller(tmp_path / "d.npz", labeller)
    load_labeller(tmp_path / "d.npz", fresh)
    assert labeller.label(pool)[1].tobytes() == fresh.label(pool)[1].tobytes() and labeller.schema() == fresh.schema()
    with pytest.raises(DataError, match="smoothing: 1e-08 there, 0.001 here"):
        load_labeller(tmp_path / "d.npz", DSIRImportance(smoothing=1e-3))


@pytest.mark.parametrize("wrong", [dict(buckets=1), dict(order=0), dict(bins=1), dict(smoothing=0)])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(DataError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        DSIRImportance(**wrong)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match="has no reference tasks to learn from; prepare it with data.reference_paths"):
        fit_labeller(tmp_path, DSIRImportance(), natural(40))
    with pytest.raises(DataError, match="at least 20 different documents of target text, there are 3"):
        fitted(["a", "b", "c"], natural(40))
    with pytest.raises(DataError, match="of the pool, there are 19"):
        fitted([d.text for d in natural(25)], natural(19))
    with pytest.raises(DataError, match="25 documents hold no word, the first is references"):
        fitted([" " * i for i in range(25)], natural(40))
    (tmp_path / "references").mkdir()
    (tmp_path / "references" / "bad.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="bad.jsonl is not a readable reference task of mads"):
        fit_labeller(tmp_path, DSIRImportance(), natural(40))
