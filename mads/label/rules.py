"""Quality rules of Gopher (MassiveText; Rae et al. 2021, arXiv 2112.11446, appendix A.1.1) and of C4 (Raffel et al. 2020, arXiv
1910.10683, section 2.2), and three of FineWeb (Penedo et al. 2024, arXiv 2406.17557, section 3.6).

Each rule says of every document of a batch whether it passes. The originals throw a document (or a line) out when one rule
fails; here the score is the weighted share of rules passed, so that code or verse is not worthless because of one of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mads.label.statistics import TextStatistics

Rule = Callable[[TextStatistics], np.ndarray]


def enough_words(s: TextStatistics) -> np.ndarray:
    """Gopher: 50 to 100,000 words."""
    return (s.words >= 50) & (s.words <= 100_000)


def ordinary_word_length(s: TextStatistics) -> np.ndarray:
    """Gopher: mean word length of 3 to 10 characters."""
    return (s.mean_word_length >= 3) & (s.mean_word_length <= 10)


def few_symbols(s: TextStatistics) -> np.ndarray:
    """Gopher: at most 0.1 hash signs, and at most 0.1 ellipses, per word."""
    return s.symbols_per_word <= 0.1


def few_bullets(s: TextStatistics) -> np.ndarray:
    """Gopher: at most 90% of the lines start with a bullet."""
    return s.bullet_lines <= 0.9


def few_ellipsis_lines(s: TextStatistics) -> np.ndarray:
    """Gopher: at most 30% of the lines end with an ellipsis."""
    return s.ellipsis_lines <= 0.3


def alphabetic_words(s: TextStatistics) -> np.ndarray:
    """Gopher: at least 80% of the words have a letter."""
    return s.alphabetic_words >= 0.8


def stop_words(s: TextStatistics) -> np.ndarray:
    """Gopher: at least two of the, be, to, of, and, that, have, with."""
    return s.stop_words >= 2


def few_duplicate_lines(s: TextStatistics) -> np.ndarray:
    """Gopher: at most 30% of the lines repeat an earlier line."""
    return s.duplicate_lines <= 0.30


def few_duplicate_line_characters(s: TextStatistics) -> np.ndarray:
    """Gopher: at most 20% of the characters are in lines that repeat an earlier line."""
    return s.duplicate_line_characters <= 0.20


def no_dominant_bigram(s: TextStatistics) -> np.ndarray:
    """Gopher: the top 2-gram takes at most 20% of the characters."""
    return s.top_ngram[2] <= 0.20


def no_dominant_trigram(s: TextStatistics) -> np.ndarray:
    """Gopher: the top 3-gram takes at most 18% of the characters."""
    return s.top_ngram[3] <= 0.18


def no_dominant_fourgram(s: TextStatistics) -> np.ndarray:
    """Gopher: the top 4-gram takes at most 16% of the characters."""
    return s.top_ngram[4] <= 0.16


def few_repeated_fivegrams(s: TextStatistics) -> np.ndarray:
    """Gopher: at most 15% of the characters are in repeated 5-grams."""
    return s.repeated_ngrams[5] <= 0.15


def few_repeated_tengrams(s: TextStatistics) -> np.ndarray:
    """Gopher: at most 10% of the characters are in repeated 10-grams (5 and 10 are the ends of its ladder)."""
    return s.repeated_ngrams[10] <= 0.10


def lines_of_words(s: TextStatistics) -> np.ndarray:
    """C4 keeps lines of at least five words; here the mean over the lines."""
    return s.words_per_line >= 5


def no_boilerplate(s: TextStatistics) -> np.ndarray:
    """C4: neither "lorem ipsum" nor a line about Javascript."""
    return s.boilerplate == 0


def no_braces(s: TextStatistics) -> np.ndarray:
    """C4 refuses pages with a curly brace; here at most one per 100 words, so that prose about code passes."""
    return s.braces_per_word <= 0.01


def terminal_lines(s: TextStatistics) -> np.ndarray:
    """FineWeb's form of C4's terminal punctuation rule: at least 12% of the lines end in a full stop, question or exclamation
    mark, or closing quotation mark."""
    return s.terminal_lines >= 0.12


def few_lines_repeat(s: TextStatistics) -> np.ndarray:
    """FineWeb: at most 1% of the characters are in lines that repeat an earlier line."""
    return s.duplicate_line_characters <= 0.01


def varied_words(s: TextStatistics) -> np.ndarray:
    """Ours: 15% of the words are distinct, or at least 300 words if the document is long; a sentence said over and over fails."""
    return s.distinct_words * s.words >= np.minimum(0.15 * s.words, 300)


RULES: tuple[tuple[Rule, float], ...] = (
    (enough_words, 1.0),
    (ordinary_word_length, 1.0),
    (few_symbols, 1.0),
    (few_bullets, 1.0),
    (few_ellipsis_lines, 1.0),
    (alphabetic_words, 1.0),
    (stop_words, 1.0),
    (few_duplicate_lines, 0.5),
    (few_duplicate_line_characters, 0.5),
    (no_dominant_bigram, 0.5),
    (no_dominant_trigram, 0.5),
    (no_dominant_fourgram, 0.5),
    (few_repeated_fivegrams, 0.5),
    (few_repeated_tengrams, 0.5),
    (lines_of_words, 1.0),
    (no_boilerplate, 0.5),
    (no_braces, 0.5),
    (terminal_lines, 1.0),
    (few_lines_repeat, 0.5),
    (varied_words, 1.0),
)


def rule_score(statistics: TextStatistics) -> np.ndarray:
    """Weighted share of RULES that each document passes, float64 [n] in [0, 1]."""
    return sum(weight * rule(statistics) for rule, weight in RULES) / sum(weight for _, weight in RULES)
