"""Words and their hashes against regular expressions and Python integers."""

import random
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from mads.hygiene import words as words_module
from mads.hygiene.words import hash_words, mixed, windows, words_of

LETTERS = 0x9E3779B97F4A7C15
TEXTS = [
    "The cat, the CAT and the Hat!",
    "",
    " \n\t ... --",
    "a",
    "ends in a word",
    "Größe ΣΊΣΥΦΟΣ naïve Ærø 3.14 x_y can't",
    "unter 漢字とカナ mixed漢words 𠀀𠀁",
    "e\u0301te\u0301 = été",
    "emoji 😀 between😀words",
    "line\u2028sep\u00a0nbsp\x00nul",
]


def mix(value):
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
        value = ((value ^ (value >> shift)) * factor) % 2**64
    return value ^ (value >> 33)


def expected_hash(word):
    return mix(sum(ord(c) * pow(LETTERS, i, 2**64) for i, c in enumerate(word)) % 2**64)


def expected_words(text):
    """Letters, digits and underscores between them; ideographs and kana one by one."""
    single = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f]"
    text = "".join(c.casefold() if len(c.casefold()) == 1 else c for c in unicodedata.normalize("NFC", text))
    return re.findall(rf"{single}|(?:(?!{single})[^\W_])+", text)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_words_are_those_of_a_regular_expression(text):
    assert words_of(text) == expected_words(text)


def test_each_word_has_the_hash_of_its_letters_whatever_is_around_it():
    found = hash_words(TEXTS)
    assert found.offsets.tolist() == np.cumsum([0, *(len(expected_words(t)) for t in TEXTS)]).tolist()
    assert found.hashes.tolist() == [expected_hash(w) for text in TEXTS for w in expected_words(text)]
    assert len(hash_words([]).hashes) == 0 and hash_words([]).offsets.tolist() == [0]
    assert hash_words(["", ""]).offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize("piece", [4, 7, 64])
def test_long_texts_are_hashed_in_pieces_without_cutting_words(monkeypatch, piece):
    rng = random.Random(piece)
    texts = [" ".join("ab漢c é"[rng.randrange(7) :][:3] for _ in range(rng.randrange(60))) for _ in range(50)]
    whole, words = hash_words(texts), [words_of(t) for t in texts]
    monkeypatch.setattr(words_module, "PIECE", piece)
    words_module._powers.cache_clear()
    try:
        cut, words_cut = hash_words(texts), [words_of(t) for t in texts]
        some = [words_of(t, np.arange(1, len(w), 3)) for t, w in zip(texts, words)]
    finally:
        monkeypatch.undo()
        words_module._powers.cache_clear()
    assert np.array_equal(whole.hashes, cut.hashes) and np.array_equal(whole.offsets, cut.offsets)
    assert words == words_cut and some == [w[1::3] for w in words]


def test_hashes_are_the_same_in_another_process():
    code = "from mads.hygiene.words import hash_words; print(hash_words(['Größe matters']).hashes.tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str([expected_hash("größe"), expected_hash("matters")])


def test_windows_are_a_polynomial_of_the_words():
    hashes = mixed(np.arange(1, 9, dtype=np.uint64))
    for length in (1, 2, 5, 8):
        expected = []
        for start in range(9 - length):
            value = 0
            for h in hashes[start : start + length].tolist():
                value = (value * 0xD6E8FEB86659FD93 + h) % 2**64
            expected.append(value)
        assert windows(hashes, length).tolist() == expected
    assert len(windows(hashes, 9)) == 0
