"""Batch counts against plain Python, and the rules at their thresholds."""

import dataclasses
import random
import zlib
from collections import Counter

import numpy as np
import pytest

from mads.data.cutting import batches
from mads.label import rules
from mads.label.statistics import TextStatistics, text_statistics
from mads.label.words import hashed_ngrams, split_words


def random_texts(count, seed=0):
    rng = random.Random(seed)
    vocabulary = [
        "the",
        "The",
        "and,",
        "be",
        "of",
        "with.",
        "a",
        "bb",
        "ccc",
        "1234",
        "x1",
        "#tag",
        "naïve",
        "{",
        "}",
        "...",
        "ja!",
        "漢字",
        "--",
    ]
    texts = ["", " \n\t", "word", "a a", "a a a a a a a a a a a a"]
    while len(texts) < count:
        few = rng.sample(vocabulary, rng.randrange(2, len(vocabulary)))
        lines = [" ".join(rng.choices(few, k=rng.randrange(0, 9))) for _ in range(rng.randrange(1, 12))]
        lines += rng.choices(lines, k=rng.randrange(0, 4)) + rng.choices(
            ["- item", "• item", "more…", "end.", 'Said "so"', "JavaScript"], k=2
        )
        rng.shuffle(lines)
        texts.append("\n".join(lines))
    return texts


def ngrams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def top_share(words, n):
    total = sum(map(len, words))
    counts = Counter(ngrams(words, n))
    return min(max((c * sum(map(len, g)) for g, c in counts.items() if c > 1), default=0) / total, 1) if total else 0


def repeated_share(words, n):
    total, seen, covered = sum(map(len, words)), set(), set()
    for i, gram in enumerate(ngrams(words, n)):
        if gram in seen:
            covered.update(range(i, i + n))
        seen.add(gram)
    return sum(len(words[i]) for i in covered) / total if total else 0


def plain(text):
    """Every statistic of one text, the slow way."""
    words = text.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    n, m = len(words) or 1, len(lines) or 1
    again = [line for i, line in enumerate(lines) if line in lines[:i]]
    lower = {w.lower().strip("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~“”‘’…–—«»") for w in words}
    return {
        "words": len(words),
        "mean_word_length": sum(map(len, words)) / n,
        "distinct_words": len(set(words)) / n,
        "alphabetic_words": sum(any(c.isalpha() for c in w) for w in words) / n,
        "stop_words": len(lower & {"the", "be", "to", "of", "and", "that", "have", "with"}),
        "symbols_per_word": max(text.count("#"), text.count("...") + text.count("…")) / n if words else 0,
        "braces_per_word": (text.count("{") + text.count("}")) / n if words else 0,
        "boilerplate": text.lower().count("javascript") + text.lower().count("lorem ipsum"),
        "lines": len(lines),
        "words_per_line": len(words) / m,
        "bullet_lines": sum(line[0] in "•‣▪●" or line[:2] in ("- ", "* ", "– ") for line in lines) / m,
        "ellipsis_lines": sum(line[-3:] == "..." or line[-1] == "…" for line in lines) / m,
        "terminal_lines": sum(line[-1] in ".!?\"”'’" for line in lines) / m,
        "duplicate_lines": len(again) / m,
        "duplicate_line_characters": sum(map(len, again)) / (sum(map(len, lines)) or 1),
        "top_ngram": {k: top_share(words, k) for k in (2, 3, 4)},
        "repeated_ngrams": {k: repeated_share(words, k) for k in (5, 10)},
    }


def test_statistics_equal_plain_python_document_by_document():
    check_statistics_equal_plain_python()


def check_statistics_equal_plain_python():
    texts = random_texts(300)
    found = text_statistics(texts, split_words(texts))
    seen = Counter()
    for i, text in enumerate(texts):
        for name, expected in plain(text).items():
            value = getattr(found, name)
            pairs = [(value[k][i], expected[k]) for k in expected] if isinstance(expected, dict) else [(value[i], expected)]
            for got, want in pairs:
                assert got == pytest.approx(want, abs=1e-12), (name, text)
                seen[name] += want > 0
    assert all(seen[f.name] > 5 for f in dataclasses.fields(TextStatistics)), seen  # each one was really exercised


@pytest.mark.parametrize("texts", [[""], ["", ""], ["one"], ["", "one", ""]])
def test_almost_nothing_is_counted_without_warnings(texts):
    with np.errstate(all="raise"):
        batch = split_words(texts)
        assert text_statistics(texts, batch).words.tolist() == [len(t.split()) for t in texts]
        assert hashed_ngrams(batch, 8).shape == (len(texts), 8)


def test_batches_cover_all_texts_in_order():
    texts = ["x" * n for n in (5, 0, 30, 3, 3, 3, 9)]
    slices = list(batches(texts, 10))
    assert [t for part in slices for t in texts[part]] == texts
    assert all(sum(map(len, texts[part])) <= 10 or part.stop - part.start == 1 for part in slices)
    assert list(batches([])) == []


def test_hashed_ngrams_equal_plain_python():
    def mix(hash_, factor):
        return hash_ * factor % 2**64

    texts, columns = ["The cat, the CAT sat", "", "sat the", "cat sat the naïve cat"], 64
    expected = np.zeros((len(texts), columns))
    for row, text in enumerate(texts):
        hashes = [zlib.crc32(w.lower().strip(",").encode()) for w in text.split()]
        found = [mix(h, 0x94D049BB133111EB) for h in hashes]
        found += [(mix(mix(a, 0x9E3779B97F4A7C15) ^ b, 0xBF58476D1CE4E5B9) + 1) % 2**64 for a, b in zip(hashes, hashes[1:])]
        for column, count in Counter(h >> 58 for h in found).items():
            expected[row, column] = 1 + np.log(count)
        expected[row] /= np.linalg.norm(expected[row]) or 1
    np.testing.assert_allclose(hashed_ngrams(split_words(texts), columns).toarray(), expected, atol=1e-15)


def test_features_of_a_document_do_not_depend_on_the_others():
    texts = random_texts(60, seed=5)
    together = hashed_ngrams(split_words(texts), 256).toarray()
    for i in (3, 17, 59):
        assert (hashed_ngrams(split_words([texts[i]]), 256).toarray()[0] == together[i]).all()


def good_statistics(**changes):
    values = {f.name: np.array([0.0]) for f in dataclasses.fields(TextStatistics)}
    values |= {
        "words": 500.0,
        "mean_word_length": 5.0,
        "distinct_words": 0.5,
        "alphabetic_words": 0.95,
        "stop_words": 6.0,
        "lines": 10.0,
        "words_per_line": 50.0,
        "terminal_lines": 0.9,
        "top_ngram": {2: 0.0, 3: 0.0, 4: 0.0},
        "repeated_ngrams": {5: 0.0, 10: 0.0},
    }
    values |= changes
    as_array = {
        k: {n: np.array([x]) for n, x in v.items()} if isinstance(v, dict) else np.atleast_1d(v) for k, v in values.items()
    }
    return TextStatistics(**as_array)


@pytest.mark.parametrize(
    "rule, field, passing, failing",
    [
        (rules.enough_words, "words", (50, 100_000), (49, 100_001)),
        (rules.ordinary_word_length, "mean_word_length", (3, 10), (2.99, 10.01)),
        (rules.few_symbols, "symbols_per_word", (0.1,), (0.11,)),
        (rules.few_bullets, "bullet_lines", (0.9,), (0.91,)),
        (rules.few_ellipsis_lines, "ellipsis_lines", (0.3,), (0.31,)),
        (rules.alphabetic_words, "alphabetic_words", (0.8,), (0.79,)),
        (rules.stop_words, "stop_words", (2,), (1,)),
        (rules.few_duplicate_lines, "duplicate_lines", (0.3,), (0.31,)),
        (rules.few_duplicate_line_characters, "duplicate_line_characters", (0.2,), (0.21,)),
        (rules.no_dominant_bigram, ("top_ngram", 2), (0.2,), (0.21,)),
        (rules.no_dominant_trigram, ("top_ngram", 3), (0.18,), (0.19,)),
        (rules.no_dominant_fourgram, ("top_ngram", 4), (0.16,), (0.17,)),
        (rules.few_repeated_fivegrams, ("repeated_ngrams", 5), (0.15,), (0.16,)),
        (rules.few_repeated_tengrams, ("repeated_ngrams", 10), (0.1,), (0.11,)),
        (rules.lines_of_words, "words_per_line", (5,), (4.9,)),
        (rules.no_boilerplate, "boilerplate", (0,), (1,)),
        (rules.no_braces, "braces_per_word", (0.01,), (0.02,)),
        (rules.terminal_lines, "terminal_lines", (0.12,), (0.11,)),
        (rules.few_lines_repeat, "duplicate_line_characters", (0.01,), (0.02,)),
        (rules.varied_words, "distinct_words", (0.15,), (0.14,)),
    ],
)
def test_each_rule_at_its_threshold(rule, field, passing, failing):
    def with_value(value):
        if isinstance(field, tuple):
            base = {"top_ngram": {2: 0.0, 3: 0.0, 4: 0.0}, "repeated_ngrams": {5: 0.0, 10: 0.0}}[field[0]]
            return good_statistics(**{field[0]: base | {field[1]: float(value)}})
        return good_statistics(**{field: float(value)})

    assert rule in [r for r, _ in rules.RULES]
    assert all(rule(with_value(v))[0] for v in passing) and not any(rule(with_value(v))[0] for v in failing)
    assert 0.8 < rules.rule_score(with_value(failing[0]))[0] < 1.0  # one failed rule costs, and does not zero
    assert rules.rule_score(good_statistics()) == 1.0


def test_words_are_those_of_python_whatever_the_white_space():
    spaces = [chr(i) for i in range(0x3100) if chr(i).isspace()] + ["\ufeff", "\u200b", "\u2060"]  # the last three are none
    texts = ["".join(f"w{i}{s}" * 2 for i, s in enumerate(spaces)), *spaces, *(f"{s}a{s}b{s}a" for s in spaces), "", "é e\u0301"]
    batch = split_words(texts)
    for i, text in enumerate(texts):
        assert [batch.vocabulary[w] for w in batch.word[batch.document == i]] == text.split()
    in_order = [word for text in texts for word in text.split()]
    assert batch.vocabulary == list(dict.fromkeys(in_order))
    assert batch.lengths.tolist() == [len(word) for word in batch.vocabulary]
