"""Contamination against sets of tuples of words."""

import random

import pytest
from test_hash_words import expected_words

from mads.hygiene import contamination as contamination_module
from mads.hygiene.contamination import Contamination, Hit

EXAMPLE = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen."


def naive(tasks, texts, length=13, shortest=8):
    """Per text the set of (task, example) that share a gram with it."""
    grams = []
    for task, examples in tasks.items():
        for name, text in examples:
            words = expected_words(text)
            n = min(length, len(words))
            if n >= shortest:
                grams.append((n, (task, name), {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}))
    found = []
    for text in texts:
        words = expected_words(text)
        windows = {n: {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for n in range(shortest, length + 1)}
        found.append({which for n, which, mine in grams if mine & windows[n]})
    return found


def check_hits_are_those_of_sets_of_tuples():
    rng = random.Random(1)
    pool = [f"w{i}" for i in range(6)]  # few words: shared grams come by chance

    def some(n):
        return [rng.choice(pool) for _ in range(n)]

    tasks = {t: [(f"{t}-{i}", " ".join(some(rng.randrange(5, 40)))) for i in range(30)] for t in ("a", "b")}
    texts = []
    for i in range(300):
        words = some(rng.randrange(60))
        if i % 2 == 0:  # a piece of an example, with other case and punctuation
            source = rng.choice(tasks[rng.choice("ab")])[1].split()
            start = rng.randrange(len(source)) // 2
            piece = [w.upper() if rng.random() < 0.5 else w for w in source[start : start + rng.randrange(8, 30)]]
            at = rng.randrange(len(words) + 1)
            words[at:at] = piece
        texts.append(rng.choice((" ", ", ", "\n", " -- ")).join(words))
    found, expected = Contamination(tasks).hits(texts), naive(tasks, texts)
    assert [set(h.examples) if h else set() for h in found] == expected
    assert 50 < sum(map(bool, expected)) < 250
    for text, hit in zip(texts, found):
        if hit:
            gram = hit.gram.split()
            words = expected_words(text)
            assert gram in [words[i : i + len(gram)] for i in range(len(words))]
            assert (hit.task, hit.example) in hit.examples


def test_hits_are_those_of_sets_of_tuples():
    check_hits_are_those_of_sets_of_tuples()


def check_twelve_words_do_not_hit_and_thirteen_do():
    words = EXAMPLE.split()
    finder = Contamination({"t": [("t-1", EXAMPLE)]})
    for start, count, hits in [(0, 13, 1), (1, 13, 1), (0, 12, 0), (2, 12, 0), (0, 14, 1)]:
        text = " ".join(["before", *words[start : start + count], "after"])
        assert [h is not None for h in finder.hits([text])] == [bool(hits)]


def test_twelve_words_do_not_hit_and_thirteen_do():
    check_twelve_words_do_not_hit_and_thirteen_do()


@pytest.mark.parametrize(
    "text",
    [
        "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE THIRTEEN",
        "one, two; three: four -- five 'six' (seven) [eight] nine/ten... eleven!twelve?thirteen",
        "one\ttwo\n\nthree\u00a0four\r\nfive six seven eight nine ten   eleven twelve thirteen",
        "**one** _two_ <b>three</b>"[:9] + " two “three” four five six seven eight nine ten eleven—twelve…thirteen",
    ],
    ids=["case", "punctuation", "white space", "marks"],
)
def test_case_punctuation_and_white_space_do_not_hide_an_example(text):
    hit = Contamination({"t": [("t-1", EXAMPLE)]}).hits([f"Something before. {text} And after."])[0]
    assert hit == Hit("t", "t-1", "one two three four five six seven eight nine ten eleven twelve thirteen", (("t", "t-1"),))
    assert hit.detail.startswith("13 words of t t-1: one two")


def test_short_examples_are_one_gram_and_shorter_ones_are_listed():
    finder = Contamination(
        {"t": [("eight", "a1 a2 a3 a4 a5 a6 a7 a8"), ("seven", "b1 b2 b3 b4 b5 b6 b7"), ("none", "?!")], "u": []}
    )
    assert finder.unchecked == {"t": ["seven", "none"], "u": []} and finder.examples == {"t": 3, "u": 0}
    texts = ["x a1 a2 a3 a4 a5 a6 a7 a8 y", "x a1 a2 a3 a4 a5 a6 a7 y", "b1 b2 b3 b4 b5 b6 b7", "?!", ""]
    assert [h and h.example for h in finder.hits(texts)] == ["eight", None, None, None, None]
    assert Contamination({}).hits(texts) == [None] * 5


def test_grams_do_not_reach_over_two_texts():
    words = EXAMPLE.split()
    assert Contamination({"t": [("t-1", EXAMPLE)]}).hits([" ".join(words[:7]), " ".join(words[7:])]) == [None, None]


def check_a_collision_of_hashes_removes_nothing():
    original = contamination_module.windows
    try:
        contamination_module.windows = lambda hashes, length: original(hashes, length) * 0  # all grams have the same hash
        finder = Contamination({"t": [("t-1", EXAMPLE)]})
        assert finder.hits(["other words " * 20]) == [None]
    finally:
        contamination_module.windows = original


def test_a_collision_of_hashes_removes_nothing():
    check_a_collision_of_hashes_removes_nothing()


def test_a_hit_does_not_depend_on_the_other_texts():
    rng = random.Random(2)
    tasks = {"t": [(str(i), " ".join(rng.choice("abc") for _ in range(20))) for i in range(50)]}
    texts = [" ".join(rng.choice("abc") for _ in range(rng.randrange(300))) for _ in range(200)]
    finder = Contamination(tasks)
    together = finder.hits(texts)
    assert together == [finder.hits([t])[0] for t in texts] and any(together)
    other = [texts[i] for i in range(199, -1, -1)]
    assert finder.hits(other) == together[::-1]


def test_summary_counts_documents_and_examples_of_each_task():
    shared = "k1 k2 k3 k4 k5 k6 k7 k8 k9 k10 k11 k12 k13"
    tasks = {
        "a": [("a-1", EXAMPLE), ("a-2", shared), ("a-3", "short")],
        "b": [("b-1", shared + " more")],
        "c": [("c-1", shared[::-1])],
    }
    finder = Contamination(tasks)
    hits = [h for h in finder.hits([EXAMPLE, shared, "nothing", EXAMPLE + shared]) if h]
    assert finder.summary(h.examples for h in hits) == {
        "a": {"examples": 3, "unchecked": 1, "found": 2, "documents": 3},
        "b": {"examples": 1, "unchecked": 0, "found": 1, "documents": 2},
        "c": {"examples": 1, "unchecked": 0, "found": 0, "documents": 0},
    }
    assert "(and 1 more examples)" in hits[1].detail
