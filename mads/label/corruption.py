"""Worsened copies of documents: what a quality classifier learns to tell from the originals."""

from __future__ import annotations

import numpy as np

from mads.data.documents import Document
from mads.label.sampling import content_ids
from mads.noise import hash64


def shuffle_words(text: str, rng: np.random.Generator) -> str:
    """The words of each line in another order over the whole text; line lengths stay."""
    words = text.split()
    shuffled = iter([words[i] for i in rng.permutation(len(words))])
    return "\n".join(" ".join(next(shuffled) for _ in line.split()) for line in text.split("\n"))


def shuffle_letters(text: str, rng: np.random.Generator) -> str:
    """The letters of a third to all of the words in another order."""
    share = rng.uniform(1 / 3, 1)
    words = text.split(" ")
    for i in np.flatnonzero(rng.random(len(words)) < share):
        words[i] = "".join(words[i][j] for j in rng.permutation(len(words[i])))
    return " ".join(words)


def repeat_line(text: str, rng: np.random.Generator) -> str:
    """One line, or sentence of a text with one line, over and over until it is as long as the text."""
    pieces = [p for p in (text.split("\n") if "\n" in text.strip() else text.split(". ")) if p.strip()]
    if not pieces:
        return text
    piece = pieces[rng.integers(len(pieces))][:500]
    return "\n".join([piece] * max(2, len(text) // (len(piece) + 1)))


_KINDS = (shuffle_words, shuffle_letters, repeat_line)


def corrupt(documents: list[Document], seed: int) -> list[str]:
    """One worsened copy of each document; kind and noise are functions of the seed and the text."""
    keys = hash64(seed, "corruption", 0, content_ids(documents))
    return [_KINDS[int(key % np.uint64(len(_KINDS)))](d.text, np.random.default_rng(int(key))) for d, key in zip(documents, keys)]
