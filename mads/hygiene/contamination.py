"""Documents that contain reference or evaluation examples: any 13 words in a row of one (Brown et al. 2020, appendix C).

Words are those of mads.hygiene.words. An example shorter than 13 words counts as one gram of its own length if it has at least
SHORTEST words, else nothing can be said about it. Hashes only find where to look: a document counts as contaminated if the words
themselves are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mads.data.cutting import batches
from mads.hygiene.words import BATCH, hash_words, windows, words_of

NGRAM = 13  # words
SHORTEST = 8  # words of an example that is shorter than NGRAM


@dataclass(frozen=True)
class Hit:
    """What a document shares with examples.

    task, example: of the first shared gram in the document
    gram: its words, lower case, joined by spaces
    examples: (task, example) of every example that shares a gram with the document, sorted
    """

    task: str
    example: str
    gram: str
    examples: tuple[tuple[str, str], ...]

    @property
    def detail(self) -> str:
        """For the list of removed documents."""
        more = f" (and {len(self.examples) - 1} more examples)" if len(self.examples) > 1 else ""
        return f"{len(self.gram.split())} words of {self.task} {self.example}{more}: {self.gram}"


class _Grams:
    """All grams of one length: sorted hashes, and for each the example and the word at which it begins."""

    def __init__(self, hashes: np.ndarray, examples: np.ndarray, starts: np.ndarray):
        order = np.lexsort((starts, examples, hashes))
        self.hashes, self.examples, self.starts = hashes[order], examples[order], starts[order]
        bits = min(27, max(16, (len(hashes) * 32).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._present = np.zeros(1 << bits, bool)  # a look here spares nearly all searches
        self._present[self.hashes >> self._shift] = True

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """int64 [m], ascending: which of the hashes may be one of these grams."""
        near = np.flatnonzero(self._present[hashes >> self._shift])
        wanted = hashes[near]
        place = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return near[self.hashes[place] == wanted]

    def entries(self, value: np.uint64) -> range:
        low, high = np.searchsorted(self.hashes, value, "left"), np.searchsorted(self.hashes, value, "right")
        return range(int(low), int(high))


class Contamination:
    """Finds the examples of some tasks in texts.

    Args:
        tasks: task -> (example id, text) of each example; ids are unique in their task.
    """

    def __init__(self, tasks: Mapping[str, Iterable[tuple[str, str]]]):
        self._names: list[tuple[str, str]] = []
        self._texts: list[str] = []
        self.unchecked: dict[str, list[str]] = {}
        for task, examples in tasks.items():
            self.unchecked[task] = []
            for name, text in examples:
                self._names.append((task, name))
                self._texts.append(text)
        self._grams = self._index()

    def _index(self) -> dict[int, _Grams]:
        found: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        for part in batches(self._texts, BATCH):
            words = hash_words(self._texts[part])
            for i, (start, end) in enumerate(zip(words.offsets.tolist(), words.offsets[1:].tolist()), part.start):
                length = min(NGRAM, end - start)
                if length < SHORTEST:
                    task, name = self._names[i]
                    self.unchecked[task].append(name)
                    continue
                hashes = windows(words.hashes[start:end], length)
                found.setdefault(length, []).append((hashes, np.full(len(hashes), i), np.arange(len(hashes))))
        return {length: _Grams(*map(np.concatenate, zip(*parts))) for length, parts in sorted(found.items())}

    @property
    def examples(self) -> dict[str, int]:
        """Examples of each task, those that cannot be checked included."""
        counts = dict.fromkeys(self.unchecked, 0)
        for task, _ in self._names:
            counts[task] += 1
        return counts

    def hits(self, texts: Sequence[str]) -> list[Hit | None]:
        """For each text what it shares with the examples, or None; a function of that text alone."""
        result: list[Hit | None] = []
        for part in batches(texts, BATCH):
            result += self._hits(texts[part])
        return result

    def _hits(self, texts: Sequence[str]) -> list[Hit | None]:
        words = hash_words(texts)
        places: dict[int, list[tuple[int, int, np.uint64]]] = {}  # text -> (word, length, hash) of each gram to look at
        for length, grams in self._grams.items():
            hashes = windows(words.hashes, length)
            found = grams.find(hashes)
            text = np.searchsorted(words.offsets, found, side="right") - 1
            inside = found + length <= words.offsets[text + 1]
            found, text = found[inside], text[inside]
            once = np.sort(np.unique(np.stack([text.astype(np.uint64), hashes[found]]), axis=1, return_index=True)[1])
            for place, owner in zip(found[once].tolist(), text[once].tolist()):
                places.setdefault(owner, []).append((place - int(words.offsets[owner]), length, hashes[place]))
        return [self._verified(text, sorted(places[i])) if i in places else None for i, text in enumerate(texts)]

    def _verified(self, text: str, places: list[tuple[int, int, np.uint64]]) -> Hit | None:
        needed = np.unique(np.concatenate([np.arange(word, word + length) for word, length, _ in places]))
        words = dict(zip(needed.tolist(), words_of(text, needed)))
        first, shared, known = None, set(), {}
        for word, length, value in places:
            grams, gram = self._grams[length], [words[k] for k in range(word, word + length)]
            for entry in grams.entries(value):
                example, start = int(grams.examples[entry]), int(grams.starts[entry])
                if example not in known:
                    known[example] = words_of(self._texts[example])
                if known[example][start : start + length] == gram:
                    first = first or (*self._names[example], " ".join(gram))
                    shared.add(self._names[example])
        return Hit(*first, tuple(sorted(shared))) if first else None

    def summary(self, examples: Iterable[Sequence[tuple[str, str]]]) -> dict[str, dict[str, int]]:
        """Per task: its `examples`, those `unchecked` (too short), the examples `found` and the `documents` that have one.

        Args:
            examples: Hit.examples of each removed document.
        """
        documents, found = dict.fromkeys(self.unchecked, 0), {task: set() for task in self.unchecked}
        for shared in examples:
            for task in {task for task, _ in shared}:
                documents[task] += 1
            for task, name in shared:
                found[task].add(name)
        return {
            task: {
                "examples": count,
                "unchecked": len(self.unchecked[task]),
                "found": len(found[task]),
                "documents": documents[task],
            }
            for task, count in self.examples.items()
        }
