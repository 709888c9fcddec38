"""Texts as hashes of their words, for near-duplicates and contamination.

A word is a run of letters, digits and combining marks (Unicode categories L, N, M), without regard to case; everything else only
separates. Scripts that are written without spaces between words are taken character by character. Both follow the Unicode tables
of the running Python; characters that came into Unicode lately are the only ones for which two versions may differ.

The hashes of a text depend on that text alone: not on the other texts, the process or the machine.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

PIECE = 1 << 15  # characters that are hashed at a time: their arrays stay in the processor's cache
BATCH = 1 << 20  # characters of text whose hashes are in memory at a time
_TABLE = 0x20000  # code points above: ideographs, and nothing that has two cases
_ALONE = ((0x3040, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480))  # kana and ideographs
_LETTERS = 0x9E3779B97F4A7C15  # odd: it has an inverse modulo 2**64
_WORDS = 0xD6E8FEB86659FD93


@dataclass(frozen=True)
class Words:
    """The words of n texts, one text after the other.

    hashes: uint64 [w], one per word
    offsets: int64 [n + 1], text i has the words offsets[i] to offsets[i + 1]
    """

    hashes: np.ndarray
    offsets: np.ndarray


@cache
def _fold_table() -> np.ndarray:
    """Code point -> that of its lower case, or 0 where it is no part of a word; uint32 [_TABLE]."""
    table = np.zeros(_TABLE, np.uint32)
    for point in range(_TABLE):
        character = chr(point)
        if unicodedata.category(character)[0] in "LNM":
            folded = character.casefold()
            table[point] = ord(folded) if len(folded) == 1 else point
    return table


@cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """_LETTERS to the powers 0 .. PIECE, and to 0 .. -PIECE, modulo 2**64; uint64 [PIECE + 1] each."""
    one = np.ones(1, np.uint64)
    inverse = pow(_LETTERS, -1, 1 << 64)
    return tuple(np.cumprod(np.concatenate([one, np.full(PIECE, base, np.uint64)])) for base in (_LETTERS, inverse))


def _normal(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _fold(text: str) -> np.ndarray:
    """uint32 [characters]: lower case, 0 where no word is."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    if len(codes) and codes.max() >= _TABLE:
        high = codes >= _TABLE
        ideographs = high & (codes < _ALONE[-1][1])
        return np.where(ideographs, codes, _fold_table()[np.where(high, 0, codes)])
    return _fold_table()[codes]


def _bounds(folded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each word begins and ends, int64 [w] each."""
    inside = folded != 0
    if len(folded) and folded.max() >= _ALONE[0][0]:
        alone = np.logical_or.reduce([(folded >= low) & (folded < high) for low, high in _ALONE])
        before, after = np.concatenate([[False], inside[:-1]]), np.concatenate([inside[1:], [False]])
        alone_before, alone_after = np.concatenate([[False], alone[:-1]]), np.concatenate([alone[1:], [False]])
        begins = inside & (alone | ~before | alone_before)
        return np.flatnonzero(begins), np.flatnonzero(inside & (alone | ~after | alone_after)) + 1
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    if len(folded) and inside[0]:
        edges = np.concatenate([[0], edges])
    if len(folded) and inside[-1]:
        edges = np.concatenate([edges, [len(folded)]])
    return edges[::2], edges[1::2]


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every bit over all (the finaliser of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _hash_piece(folded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [w], int64 [w]): hash and first character of each word of at most PIECE characters.

    The hash of a word is the polynomial of its code points in _LETTERS. All come from one running sum: the sum up to a word's end
    without the sum up to its begin is that polynomial times a power that is then divided away.
    """
    starts, ends = _bounds(folded)
    powers, inverses = _powers()
    sums = np.zeros(len(folded) + 1, np.uint64)
    np.cumsum(folded * powers[: len(folded)], out=sums[1:])
    return mixed((sums[ends] - sums[starts]) * inverses[starts]), starts


def _pieces(text: str) -> Iterator[np.ndarray]:
    """A long text folded, in pieces that end between words (in the middle of a word only if it is longer than a piece)."""
    rest = np.zeros(0, np.uint32)
    for low in range(0, len(text), PIECE):
        rest = np.concatenate([rest, _fold(text[low : low + PIECE])])
        while len(rest) > PIECE:
            gaps = np.flatnonzero(rest[:PIECE] == 0)
            cut = int(gaps[-1]) + 1 if len(gaps) else PIECE
            yield rest[:cut]
            rest = rest[cut:]
    yield rest


def hash_words(texts: Sequence[str]) -> Words:
    """The hashes of all words of some texts."""
    counts, hashes = np.zeros(len(texts) + 1, np.int64), []
    group: list[np.ndarray] = []  # short texts are hashed together, with a gap between them
    first = size = 0

    def finish(end: int) -> None:
        nonlocal group, first, size
        if group:
            found, places = _hash_piece(np.concatenate(group))
            ends = np.cumsum([len(g) for g in group[::2]]) + np.arange(1, len(group) // 2 + 1)
            counts[first + 1 : end + 1] = np.diff(np.searchsorted(places, ends), prepend=0)
            hashes.append(found)
        group, first, size = [], end, 0

    gap = np.zeros(1, np.uint32)
    for i, text in enumerate(texts):
        text = _normal(text)
        if size + len(text) + 1 > PIECE:
            finish(i)
        if len(text) + 1 > PIECE:
            found = [_hash_piece(piece)[0] for piece in _pieces(text)]
            hashes += found
            counts[i + 1], first = sum(map(len, found)), i + 1
            continue
        group += [_fold(text), gap]
        size += len(text) + 1
    finish(len(texts))
    return Words(np.concatenate([np.zeros(0, np.uint64), *hashes]), np.cumsum(counts))


def words_of(text: str, places: np.ndarray | None = None) -> list[str]:
    """The words of one text, lower case: what is hashed, to compare them exactly. `places`, int64 ascending: only those words."""
    found, before = [], 0
    for piece in _pieces(_normal(text)):
        starts, ends = _bounds(piece)
        if places is not None:
            mine = places[np.searchsorted(places, before) : np.searchsorted(places, before + len(starts))] - before
            before += len(starts)
            starts, ends = starts[mine], ends[mine]
        if len(starts):
            letters = piece.tobytes().decode("utf-32-le", "surrogatepass")
            found += [letters[start:end] for start, end in zip(starts.tolist(), ends.tolist())]
    return found


def windows(hashes: np.ndarray, length: int) -> np.ndarray:
    """uint64 [max(0, w - length + 1)]: a hash of each window of `length` neighbouring words, also of those across two texts."""
    count = max(0, len(hashes) - length + 1)
    value = hashes[:count].copy()
    for k in range(1, length):
        value *= np.uint64(_WORDS)
        value += hashes[k : k + count]
    return value
