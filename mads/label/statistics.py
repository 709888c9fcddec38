"""Counts over texts that the quality rules are stated in, for a batch of documents at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mads.label.words import WordBatch

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # the eight of Gopher
TERMINAL = (".", "!", "?", '"', "”", "'", "’")
_BULLETS = ("•", "‣", "▪", "●", "- ", "* ", "– ")
_ELLIPSES = ("...", "…")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class TextStatistics:
    """float64 [n] each; shares are between 0 and 1, and 0 where there is nothing to divide by."""

    words: np.ndarray
    mean_word_length: np.ndarray  # characters
    distinct_words: np.ndarray  # share
    alphabetic_words: np.ndarray  # share of words with a letter
    stop_words: np.ndarray  # how many of STOP_WORDS occur
    symbols_per_word: np.ndarray  # the larger of hash signs and ellipses
    braces_per_word: np.ndarray
    boilerplate: np.ndarray  # occurrences of "lorem ipsum" and "javascript"
    lines: np.ndarray  # that are not blank
    words_per_line: np.ndarray
    bullet_lines: np.ndarray  # share
    ellipsis_lines: np.ndarray  # share
    terminal_lines: np.ndarray  # share that ends in terminal punctuation
    duplicate_lines: np.ndarray  # share of lines that an earlier line equals
    duplicate_line_characters: np.ndarray  # the same by characters
    top_ngram: dict[int, np.ndarray]  # n = 2, 3, 4: share of characters in the most used n-gram, if used twice
    repeated_ngrams: dict[int, np.ndarray]  # n = 5, 10: share of characters in n-grams that occurred before


def text_statistics(texts: Sequence[str], batch: WordBatch) -> TextStatistics:
    """Statistics of the texts whose words are `batch`."""
    n = len(texts)
    words = np.bincount(batch.document, minlength=n).astype(np.float64)
    lengths = batch.lengths[batch.word].astype(np.float64)
    characters = np.bincount(batch.document, weights=lengths, minlength=n).astype(np.float64)  # integers where there is no word
    letters = np.fromiter(
        (w.isalpha() or _LETTER.search(w) is not None for w in batch.vocabulary), np.float64, len(batch.vocabulary)
    )
    alphabetic = np.bincount(batch.document, weights=letters[batch.word], minlength=n).astype(np.float64)
    top, repeated, distinct = _ngram_shares(batch, lengths, characters)
    line_counts = np.array([_line_counts(text) for text in texts], dtype=np.float64).reshape(n, 7).T
    lines, line_characters = line_counts[0], line_counts[6]
    symbols = np.array([_symbol_counts(text) for text in texts], dtype=np.float64).reshape(n, 3).T
    return TextStatistics(
        words=words,
        mean_word_length=_share(characters, words),
        distinct_words=_share(distinct, words),
        alphabetic_words=_share(alphabetic, words),
        stop_words=_stop_words(batch),
        symbols_per_word=_share(symbols[0], words),
        braces_per_word=_share(symbols[1], words),
        boilerplate=symbols[2],
        lines=lines,
        words_per_line=_share(words, lines),
        bullet_lines=_share(line_counts[1], lines),
        ellipsis_lines=_share(line_counts[2], lines),
        terminal_lines=_share(line_counts[3], lines),
        duplicate_lines=_share(line_counts[4], lines),
        duplicate_line_characters=_share(line_counts[5], line_characters),
        top_ngram=top,
        repeated_ngrams=repeated,
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


def _symbol_counts(text: str) -> tuple[int, int, int]:
    lower = text.lower()
    symbols = max(text.count("#"), text.count("...") + text.count("…"))
    return symbols, text.count("{") + text.count("}"), lower.count("lorem ipsum") + lower.count("javascript")


def _line_counts(text: str) -> tuple[int, int, int, int, int, int, int]:
    """Lines; of these bullets, ellipses, terminal, duplicates; characters of duplicates and of all lines."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    bullets = sum(line.startswith(_BULLETS) for line in lines)
    ellipses = sum(line.endswith(_ELLIPSES) for line in lines)
    terminal = sum(line.endswith(TERMINAL) for line in lines)
    characters = sum(map(len, lines))
    counted = Counter(lines) if len(lines) > 1 else {}
    duplicates = len(lines) - len(counted) if counted else 0
    duplicate_characters = characters - sum(map(len, counted)) if duplicates else 0
    return len(lines), bullets, ellipses, terminal, duplicates, duplicate_characters, characters


def _stop_words(batch: WordBatch) -> np.ndarray:
    """How many of STOP_WORDS occur in each document, [n]."""
    place = {word: i for i, word in enumerate(STOP_WORDS)}
    stop = np.full(len(batch.vocabulary), -1)
    for i, term in enumerate(batch.terms):
        if term in place:
            stop[i] = place[term]
    which = stop[batch.word]
    found = np.zeros((batch.texts, len(STOP_WORDS)))
    found[batch.document[which >= 0], which[which >= 0]] = 1
    return found.sum(axis=1)


@dataclass(frozen=True)
class _Grams:
    """The n-grams that a document has at least twice. An n-gram that occurs once is part of none that occurs twice, so longer
    ones are looked for only where the shorter ones repeat, which is exact and leaves little to do.

    number: int64 [w], of the n-gram that starts at each word, -1 where none of these does
    first, count: of each number, where it occurs first and how often
    """

    n: int
    number: np.ndarray
    first: np.ndarray
    count: np.ndarray


def _repeating(n: int, keys: np.ndarray, places: np.ndarray, words: int) -> tuple[_Grams, np.ndarray]:
    """The n-grams that occur twice, and the first place of every one.

    keys: int64, one for each of the n-grams that start at the ascending `places`; equal keys are one n-gram
    """
    number = pc.dictionary_encode(pa.array(keys)).indices.to_numpy()
    count = np.bincount(number)
    first = np.empty(len(count), dtype=np.int64)
    first[number[::-1]] = places[::-1]  # of several, the last assignment stays
    again = count > 1
    renumbered = np.where(again, np.cumsum(again) - 1, -1)
    everywhere = np.full(words, -1, dtype=np.int64)
    everywhere[places] = renumbered[number]
    return _Grams(n, everywhere, first[again], count[again]), first


def _pair(left: _Grams, right: _Grams, n: int, words: int) -> _Grams:
    """n-grams as pairs of a shorter one and the shorter one that ends where they end (they may overlap). A pair across the border
    of two documents occurs once, since the shorter ones are of one document, so it drops out."""
    length, later = max(words - n + 1, 0), n - right.n
    one, two = left.number[:length], right.number[later:][:length]
    places = np.flatnonzero((one >= 0) & (two >= 0))
    return _repeating(n, one[places] * np.int64(len(right.first) + 1) + two[places], places, words)[0]


def _ngram_shares(batch: WordBatch, lengths: np.ndarray, characters: np.ndarray):
    """(top n-gram shares, repeated n-gram shares, number of distinct words), the first two by n.

    Longer n-grams are numbered by pairs of shorter ones, which is exact; the document is part of the number, so counts are per
    document.
    """
    document, every = batch.document, np.arange(len(batch.document))
    keys = document * np.int64(len(batch.vocabulary)) + batch.word
    one, first = _repeating(1, keys, every, len(document))
    distinct = np.bincount(document[first], minlength=batch.texts).astype(np.float64)
    two = _pair(one, one, 2, len(document))
    three = _pair(two, one, 3, len(document))
    four = _pair(two, two, 4, len(document))
    five = _pair(four, one, 5, len(document))
    ten = _pair(five, five, 10, len(document))
    before = np.concatenate([[0.0], np.cumsum(lengths)])
    top = {grams.n: _top_share(grams, document, before, characters) for grams in (two, three, four)}
    repeated = {grams.n: _repeated_share(grams, document, lengths, characters) for grams in (five, ten)}
    return top, repeated, distinct


def _top_share(grams: _Grams, document: np.ndarray, before: np.ndarray, characters: np.ndarray) -> np.ndarray:
    """Largest share of a document's characters that one n-gram takes, over n-grams that occur at least twice."""
    most = np.zeros_like(characters)
    np.maximum.at(most, document[grams.first], grams.count * (before[grams.first + grams.n] - before[grams.first]))
    return np.minimum(_share(most, characters), 1.0)  # an n-gram that overlaps itself counts some characters twice


def _repeated_share(grams: _Grams, document: np.ndarray, lengths: np.ndarray, characters: np.ndarray) -> np.ndarray:
    """Share of a document's characters in n-grams that occurred before in it, each character once."""
    again = grams.number >= 0
    again[grams.first] = False
    starts = np.flatnonzero(again)
    edges = np.zeros(len(document) + 1, dtype=np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + grams.n, -1)
    covered = np.cumsum(edges[:-1]) > 0
    return _share(np.bincount(document, weights=lengths * covered, minlength=len(characters)), characters)
