"""Perplexity of n-grams against a plain dictionary of counts."""

import math
from collections import Counter

import numpy as np
import pytest
from label_support import natural

from mads.data.documents import Document
from mads.data.schema import DataError
from mads.label.base import load_labeller, save_labeller
from mads.label.corruption import shuffle_words
from mads.label.ngram import NGramPerplexity

COLUMNS = 1 << 20  # many more than n-grams, so none share a count
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def words(text):
    return [*(w.lower().strip(PUNCTUATION) for w in text.split()), None]  # None ends a document


def counts_of(texts, order):
    """Counter of the k-grams of all texts, as tuples."""
    grams = Counter()
    for text in texts:
        own = words(text)
        grams.update(tuple(own[i : i + k]) for k in range(1, order + 1) for i in range(len(own) - k + 1))
    return grams


def probability(counts, total, context, word, smoothing):
    """p(word | context) by the recursion of the class's docstring."""
    below = probability(counts, total, context[1:], word, smoothing) if context else 1 / COLUMNS
    seen = counts[context] if context else total
    return (counts[(*context, word)] + smoothing * below) / (seen + smoothing)


def bits(text, texts, order, smoothing):
    """Bits per word of `text` under the counts of all other texts."""
    counts = counts_of([t for t in texts if t != text], order)
    total = sum(c for gram, c in counts.items() if len(gram) == 1)
    own = words(text)
    each = [probability(counts, total, tuple(own[max(0, i - order + 1) : i]), w, smoothing) for i, w in enumerate(own)]
    return -sum(map(math.log2, each)) / len(own)


def check_against_a_dictionary(order):
    fit = natural(60, seed=1)
    labeller = NGramPerplexity(order=order, columns=COLUMNS, smoothing=2.5)
    labeller.fit(fit)
    unseen = natural(5, seed=7) + [Document("entirely unknown vocabulary here", "x", "made", 1), Document("moon", "x", "made", 2)]
    texts = [d.text for d in fit]
    found = labeller.label(unseen + fit[:5])[1]  # documents of the fit sample count without themselves
    np.testing.assert_allclose(found, [bits(d.text, texts, order, 2.5) for d in unseen + fit[:5]], rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_bits_are_those_of_a_dictionary_of_counts(order):
    check_against_a_dictionary(order)


def test_the_next_word_is_certain_in_sum():
    counts = counts_of([d.text for d in natural(30, seed=1)], 2)
    vocabulary = {gram[0] for gram in counts if len(gram) == 1}
    total = sum(c for gram, c in counts.items() if len(gram) == 1)
    known = sum(probability(counts, total, ("the",), w, 2.5) for w in vocabulary)
    unknown = (COLUMNS - len(vocabulary)) * probability(counts, total, ("the",), "never seen", 2.5)
    assert known + unknown == pytest.approx(1)


def check_that_the_sample_is_scored_without_itself():
    fit = natural(60, seed=1)
    labeller = NGramPerplexity(columns=COLUMNS)
    labeller.fit(fit)
    for i in range(5):
        without = NGramPerplexity(columns=COLUMNS)
        without.fit(fit[:i] + fit[i + 1 :])
        assert labeller.label(fit[i : i + 1])[1] == pytest.approx(without.label(fit[i : i + 1])[1], rel=1e-5)


def test_the_sample_is_scored_without_itself():
    check_that_the_sample_is_scored_without_itself()


def check_that_labels_do_not_depend_on_the_batch():
    labeller, documents = NGramPerplexity(columns=1 << 14), natural(60, seed=4)
    labeller.fit(documents[:40])
    codes, values = labeller.label(documents)
    alone = [labeller.label([d]) for d in reversed(documents)][::-1]
    assert codes.tobytes() == np.concatenate([a[0] for a in alone]).tobytes()
    assert values.tobytes() == np.concatenate([a[1] for a in alone]).tobytes()


def test_labels_do_not_depend_on_the_batch():
    check_that_labels_do_not_depend_on_the_batch()


def test_bins_hold_equal_shares_and_their_names_are_true():
    labeller, documents = NGramPerplexity(columns=COLUMNS, bins=4), natural(200, seed=1)
    labeller.fit(documents)
    codes, values = labeller.label(documents)
    assert np.abs(np.bincount(codes, minlength=4) - 50).max() <= 3
    names = labeller.schema().labels
    edges = [float(n.removeprefix("<")) for n in names[:1]] + [float(n[1:-1].split(",")[1]) for n in names[1:-1]]
    assert names[-1] == f">={edges[-1]:g}" and codes.tolist() == [sum(v >= e for e in edges) for v in values.astype(np.float64)]


def test_shuffled_words_are_less_likely():
    labeller, fresh = NGramPerplexity(columns=COLUMNS), natural(80, seed=9)
    labeller.fit(natural(300))
    rng = np.random.default_rng(0)
    worse = [Document(shuffle_words(d.text, rng), "x", "made", 1) for d in fresh]
    assert np.mean(labeller.label(fresh)[1][:, None] < labeller.label(worse)[1][None, :]) > 0.95


def test_given_text_is_what_is_counted(tmp_path):
    path = tmp_path / "good.txt"
    path.write_text("unused")
    for i, d in enumerate(natural(30, seed=1)):
        (tmp_path / f"{i}.txt").write_text(d.text)
    labeller = NGramPerplexity(good_paths=[str(tmp_path)], columns=COLUMNS, smoothing=2.5)
    labeller.fit(natural(40, seed=3))
    texts = [d.text for d in natural(30, seed=1)] + ["unused"]
    unseen = natural(4, seed=8)
    np.testing.assert_allclose(labeller.label(unseen)[1], [bits(d.text, texts, 2, 2.5) for d in unseen], rtol=1e-5)
    assert labeller.schema().provenance["fit_documents"] == 31


def test_the_state_comes_back(tmp_path):
    fitted, fresh, unseen = NGramPerplexity(columns=1 << 14), NGramPerplexity(columns=1 << 14), natural(30, seed=4)
    fitted.fit(natural(60))
    save_labeller(tmp_path / "p.npz", fitted)
    load_labeller(tmp_path / "p.npz", fresh)
    for documents in (unseen, natural(60)):
        assert fitted.label(documents)[1].tobytes() == fresh.label(documents)[1].tobytes()
    assert fitted.schema() == fresh.schema()
    with pytest.raises(DataError, match="smoothing: 4.0 there, 8.0 here"):
        load_labeller(tmp_path / "p.npz", NGramPerplexity(columns=1 << 14, smoothing=8))


@pytest.mark.parametrize("wrong", [dict(order=0), dict(bins=1), dict(smoothing=0), dict(columns=1000)])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(DataError, match=str(next(iter(wrong.values())))):
        NGramPerplexity(**wrong)


def test_too_little_text_is_an_error():
    with pytest.raises(DataError, match="at least 20"):
        NGramPerplexity().fit(natural(19))
