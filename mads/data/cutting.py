"""Cut long works into documents, join short texts to documents, and take many texts a batch at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

_BORDERS = (re.compile(r"\n[ \t]*\n\s*"), re.compile(r"\n"), re.compile(r"(?<=[.!?])\s"), re.compile(r"\s"))  # best first


def cut_text(text: str, target: int = 8000) -> list[str]:
    """Pieces of nearly equal length, about `target` characters and never more than 1.5 times that, cut at the border of a
    paragraph near the ideal place, else of a line, a sentence or a word. Only white space at the cuts is lost; an empty text
    gives no piece.
    """
    text = text.strip("\n")
    pieces = []
    while len(text) > 1.25 * target:
        ideal = len(text) // max(2, round(len(text) / target))
        end, start = _cut_near(text, ideal, reach=ideal // 4)
        pieces.append(text[:end])
        text = text[start:]
    pieces.append(text)
    return [piece for piece in pieces if piece.strip()]


def _cut_near(text: str, ideal: int, reach: int) -> tuple[int, int]:
    """(end of the piece, start of the rest) at the best kind of border within `reach` characters of `ideal`."""
    for border in _BORDERS:
        found = [m.span() for m in border.finditer(text, ideal - reach, ideal + reach)]
        if found:
            return min(found, key=lambda span: abs(span[0] - ideal))
    return ideal, ideal


def join_texts(texts: Iterable[str], count: int = 40) -> Iterator[str]:
    """One document from every `count` texts, a line each; the last may have fewer."""
    texts = iter(texts)
    while group := list(islice(texts, count)):
        yield "\n".join(group)


def batches(texts: Sequence[str], characters: int = 2_000_000) -> Iterator[slice]:
    """Slices of at most about `characters` of text and at least one text each, which bounds the memory of what follows."""
    start = size = 0
    for position, text in enumerate(texts):
        if size and size + len(text) > characters:
            yield slice(start, position)
            start, size = position, 0
        size += len(text)
    if start < len(texts):
        yield slice(start, len(texts))
