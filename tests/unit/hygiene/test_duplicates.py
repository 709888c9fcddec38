"""Duplicates against sets of tuples, dictionaries and all pairs."""

import random

import numpy as np
import pytest

from mads.data.schema import DataError
from mads.hygiene import duplicates as duplicates_module
from mads.hygiene.duplicates import exact_duplicates, near_duplicates, similarities, text_keys
from mads.hygiene.minhash import NGRAM, SLOTS, bands, signatures
from mads.hygiene.words import words_of


def variants(seed, documents=40, words=200, most=5, change=0.03):
    """Documents and up to `most` changed copies of each, shuffled; changed words are new ones."""
    rng, texts = random.Random(seed), []
    for i in range(documents):
        base = [f"w{rng.randrange(3000)}" for _ in range(words)]
        for copy in range(rng.randrange(1, most + 1)):
            rate = change * rng.random()
            texts.append(" ".join(f"n{i}-{copy}-{k}" if copy and rng.random() < rate else w for k, w in enumerate(base)))
    rng.shuffle(texts)
    return texts


def gram_set(text):
    words = words_of(text)
    return {tuple(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))}


def components(count, links):
    first = list(range(count))
    changed = True
    while changed:
        changed = False
        for a, b in links:
            low = min(first[a], first[b])
            changed |= first[a] != low or first[b] != low
            first[a] = first[b] = low
    return np.array([-1 if f == i else f for i, f in enumerate(first)])


def by_all_pairs(found, threshold):
    """Clusters from every pair that shares a band, compared slot by slot."""
    count, rows = bands(threshold)
    links = []
    for a in range(len(found)):
        for b in range(a + 1, len(found)):
            equal = found[a] == found[b]
            if any(equal[k * rows : (k + 1) * rows].all() for k in range(count)) and equal.sum() >= threshold * SLOTS:
                links.append((a, b))
    return components(len(found), links)


def check_clusters_are_those_of_all_pairs():
    for seed, threshold in ((0, 0.5), (1, 0.8)):
        found = signatures(variants(seed, documents=25))
        result = near_duplicates(found, threshold)
        assert np.array_equal(result, by_all_pairs(found, threshold)) and (result >= 0).sum() > 25


def test_clusters_are_those_of_all_pairs():
    check_clusters_are_those_of_all_pairs()


def check_the_first_in_input_order_stays():
    texts = variants(7)
    found = signatures(texts)
    groups = []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(texts))
        result = near_duplicates(found[order], 0.7)
        repeats = np.flatnonzero(result >= 0)
        assert np.all(result[repeats] < repeats) and np.all(result[result[repeats]] == -1)
        kept = np.where(result < 0, np.arange(len(texts)), result)
        groups.append({frozenset(order[kept == k].tolist()) for k in np.unique(kept)})
    assert all(g == groups[0] for g in groups)  # which cluster a document belongs to does not depend on the order


def test_the_first_in_input_order_stays():
    check_the_first_in_input_order_stays()


def test_exact_jaccard_on_a_small_corpus():
    """Pairs well above the threshold are found, pairs well below are not (five standard deviations of the estimate)."""
    texts = variants(11, documents=80, most=3, change=0.06)
    sets = [gram_set(t) for t in texts]
    result = near_duplicates(signatures(texts), 0.7)
    cluster = np.where(result < 0, np.arange(len(texts)), result)
    above = below = 0
    for b in range(len(texts)):
        for a in range(b):
            truth = len(sets[a] & sets[b]) / len(sets[a] | sets[b])
            if truth >= 0.9:
                above += 1
                assert cluster[b] == cluster[a]
            elif truth <= 0.5:
                below += 1
                assert cluster[b] != cluster[a]
    assert above > 5 and below > 1000


@pytest.mark.parametrize("changed, expected", [(0, 60), (1, 60), (2, 60), (30, 0)])
def test_planted_near_duplicates_by_their_similarity(changed, expected):
    """n changed words of 200 far apart change 5 n of 196 grams: J = (196 - 5 n) / (196 + 5 n), here 1, 0.95, 0.90, 0.13."""
    rng, texts = random.Random(5), []
    for i in range(60):
        base = [f"w{rng.randrange(10**6)}" for _ in range(200)]
        places = {6 * k + 5 for k in range(changed)}
        texts += [" ".join(base), " ".join(f"new{i}" if k in places else w for k, w in enumerate(base))]
    found = signatures(texts)
    result = near_duplicates(found, 0.8)
    assert (result[1::2] >= 0).sum() == expected and np.all(result[::2] == -1)
    truth = (196 - 5 * changed) / (196 + 5 * changed)
    estimates = similarities(found, np.arange(1, 120, 2), np.arange(0, 120, 2))
    assert abs(estimates.mean() - truth) < 5 * np.sqrt(truth * (1 - truth) / SLOTS / 60) + 1e-6


def check_files_and_workers_do_not_matter(tmp_path):
    texts = variants(13)
    found, keys = signatures(texts), text_keys(texts + texts[:5])
    whole, exact = near_duplicates(found, 0.8), exact_duplicates(keys)
    for cuts in ([0, 1, 50, 50, 120], [30], [len(texts)]):
        parts = []
        for i, part in enumerate(np.split(np.arange(len(texts)), cuts)):
            np.save(tmp_path / f"{i}.npy", signatures([texts[k] for k in part]))
            parts.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
        assert np.array_equal(near_duplicates(parts, 0.8, scratch=tmp_path), whole)
        assert np.array_equal(exact_duplicates(np.split(keys, cuts)), exact)


def test_files_and_workers_do_not_matter(tmp_path, monkeypatch):
    check_files_and_workers_do_not_matter(tmp_path)
    monkeypatch.setattr(duplicates_module, "_SELECTED", 20)  # several ranges of keys
    monkeypatch.setattr(duplicates_module, "_ROWS", 3)
    check_files_and_workers_do_not_matter(tmp_path)
    assert duplicates_module._SELECTED == 20


def test_documents_that_are_gone_neither_repeat_nor_are_repeated():
    texts = ["a b c d e f g"] * 4 + ["another text that stands alone here"]
    alive = np.array([False, True, False, True, True])
    assert near_duplicates(signatures(texts), 0.8, alive).tolist() == [-1, -1, -1, 1, -1]
    assert exact_duplicates(text_keys(texts), alive).tolist() == [-1, -1, -1, 1, -1]
    assert near_duplicates(signatures([]), 0.8).tolist() == [] == exact_duplicates(text_keys([])).tolist()


def test_chains_join_what_is_further_apart():
    words = [f"w{i}" for i in range(400)]
    texts = [" ".join(words[shift : shift + 300]) for shift in (0, 100, 50)]  # 0.49 between the ends, 0.71 between neighbours
    found = signatures(texts)
    assert near_duplicates(found[[0, 1]], 0.6).tolist() == [-1, -1]
    assert near_duplicates(found, 0.6).tolist() == [-1, 0, 0]
    assert similarities(found, [1], [0])[0] < 0.6 < similarities(found, [2], [0])[0]


def check_a_bucket_of_many_different_documents_is_compared_in_all_pairs():
    """Equal in one band and in nothing else, two of them similar: found although many come before them."""
    rng = np.random.default_rng(0)
    found = rng.integers(0, 1 << 32, (100, SLOTS), dtype=np.uint32)
    found[:, :6] = 7
    found[90, 6:] = found[40, 6:]
    found[90, 6:126:6] += 1  # one slot of each other band of 6: 108 of 128 are equal
    result = near_duplicates(found, 0.8)
    assert result[90] == 40 and (result >= 0).sum() == 1


def test_a_bucket_of_many_different_documents_is_compared_in_all_pairs():
    check_a_bucket_of_many_different_documents_is_compared_in_all_pairs()


def test_exact_duplicates_are_those_of_a_dictionary():
    rng = random.Random(0)
    texts = [f"text {rng.randrange(300)}" for _ in range(1000)]
    first, expected = {}, []
    for i, text in enumerate(texts):
        expected.append(first.get(text, -1))
        first.setdefault(text, i)
    assert exact_duplicates(text_keys(texts)).tolist() == expected
    assert exact_duplicates(np.array([[1, 2], [1, 3], [2, 2], [1, 3]], np.uint64)).tolist() == [
        -1,
        -1,
        -1,
        1,
    ]  # all 128 bits count


def test_a_threshold_out_of_range_is_an_error():
    with pytest.raises(DataError, match="1.5"):
        near_duplicates(signatures(["a"]), 1.5)
