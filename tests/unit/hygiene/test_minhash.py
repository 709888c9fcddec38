"""MinHash signatures against datasketch and against exact Jaccard similarity."""

import random

import datasketch
import numpy as np
import pytest

from mads.data.schema import DataError
from mads.hygiene import minhash as minhash_module
from mads.hygiene.duplicates import similarities
from mads.hygiene.minhash import NGRAM, SLOTS, bands, candidate_probability, grams, minima, signatures
from mads.hygiene.words import words_of


def sketch(hashes):
    made = datasketch.MinHash(num_perm=SLOTS, seed=1, scheme="affine32", hashfunc=int)
    made.update_batch(hashes)
    return made.hashvalues


def check_slots_are_those_of_datasketch():
    rng = np.random.default_rng(0)
    sizes = [1, 1, 4, 200, 3, 70_000, 2, 31_000]  # also sets that reach over several blocks
    offsets = np.cumsum([0, *sizes])
    hashes = rng.integers(0, 1 << 32, offsets[-1], dtype=np.uint32)
    found = minima(hashes, offsets)
    assert found.dtype == np.uint32 and found.shape == (len(sizes), SLOTS)
    for row, start, end in zip(found, offsets, offsets[1:]):
        assert np.array_equal(row, sketch(hashes[start:end]))


def test_slots_are_those_of_datasketch():
    check_slots_are_those_of_datasketch()


def text_of(rng, words, vocabulary=2000):
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(words))


def exact(left, right):
    sets = []
    for text in (left, right):
        words = words_of(text)
        sets.append({tuple(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def check_estimates_are_within_their_deviation():
    """Of 400 estimates with a known standard deviation none is off by five, and their mean is off by next to nothing."""
    rng, pairs = random.Random(3), []
    for i in range(400):
        left = text_of(rng, 300).split()
        right = [f"x{i}-{k}" if rng.random() < 0.002 * (i % 40) else word for k, word in enumerate(left)]
        pairs.append((" ".join(left), " ".join(right)))
    found = signatures([text for pair in pairs for text in pair])
    estimates = similarities(found, np.arange(0, 800, 2), np.arange(1, 800, 2))
    truth = np.array([exact(*pair) for pair in pairs])
    deviation = np.sqrt(truth * (1 - truth) / SLOTS)
    assert truth.min() < 0.55 and truth.max() == 1
    assert np.all(np.abs(estimates - truth) <= 5 * deviation + 1e-6)
    assert abs(np.mean(estimates - truth)) < 5 * np.sqrt(np.sum(deviation**2)) / 400
    assert np.mean(np.abs(estimates - truth)) > 0.2 * deviation.mean()  # an estimate, not the truth


def test_estimates_are_within_their_deviation():
    check_estimates_are_within_their_deviation()


def test_a_signature_depends_on_its_text_alone(monkeypatch):
    rng = random.Random(4)
    texts = [text_of(rng, rng.choice((0, 1, 3, 4, 5, 6, 50))) for _ in range(100)] + ["", "!!", "?", text_of(rng, 2000)]
    together = signatures(texts)
    assert np.array_equal(together, np.concatenate([signatures([t]) for t in texts]))
    monkeypatch.setattr(minhash_module, "_BLOCK", 57)
    assert np.array_equal(together, signatures(texts))
    assert signatures([]).shape == (0, SLOTS)


def test_short_texts_are_one_gram_and_texts_without_words_equal_only_themselves():
    one, same, other = signatures(["Only four words here", "only four -- words HERE", "only four words there"])
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    marks = signatures(["?!", "!?", "", "?!"])
    assert np.array_equal(marks[0], marks[3])
    assert all(np.mean(marks[a] == marks[b]) < 0.1 for a, b in ((0, 1), (0, 2), (1, 2)))
    hashes, offsets = grams(["", "a b", "a b c d e f", "a b c d e"])
    assert np.diff(offsets).tolist() == [1, 1, 2, 1] and hashes[2] == hashes[4]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_have_the_most_rows_that_keep_the_recall(threshold):
    count, rows = bands(threshold)
    assert count * rows <= SLOTS and candidate_probability(threshold, count, rows) >= 0.99
    assert rows == SLOTS or candidate_probability(threshold, SLOTS // (rows + 1), rows + 1) < 0.99
    assert bands(0.8) == (21, 6)
    for wrong in (0, -1, 1.01, float("nan")):
        with pytest.raises(DataError, match="near-duplicate threshold"):
            bands(wrong)
