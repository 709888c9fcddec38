"""Which documents are left out on purpose: what an earlier one says already, exactly or nearly, and what gives tasks away."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mads.data.pool import key_path
from mads.data.prepare.hygiene import contamination_of
from mads.data.prepare.job import Job
from mads.data.prepare.survey import Surveyed
from mads.hygiene.duplicates import exact_duplicates, near_duplicates, similarities


def known_keys(job: Job, part: str) -> np.ndarray:
    """uint64 [n, 2], key and check of every document of a part of the earlier generations."""
    found = [np.load(key_path(job.directory, part, shard), mmap_mode="r") for shard in range(job.first_shard)]
    return np.concatenate([np.zeros((0, 2), np.uint64), *found])


class Removals:
    """Removed documents, each for one reason.

    removed: bool [n]
    contamination: per task what was found of its examples (mads.hygiene.contamination.Contamination.summary)
    """

    def __init__(self, documents: int):
        self.removed = np.zeros(documents, dtype=bool)
        self.contamination: dict[str, dict[str, int]] = {}
        self._counts: Counter[str] = Counter()
        self._details: dict[int, tuple[str, str]] = {}

    def add(self, index: int, reason: str, detail: str) -> None:
        """Remove a document; the first reason counts."""
        if not self.removed[index]:
            self.removed[index] = True
            self._counts[reason] += 1
            self._details[index] = reason, detail

    @property
    def counts(self) -> dict[str, int]:
        return dict(sorted(self._counts.items()))

    def write(self, path: Path, found: Surveyed) -> None:
        """List every removed document in input order, in the form of rejected.jsonl."""
        with open(path, "w", encoding="ascii") as file:
            for index in np.flatnonzero(self.removed).tolist():
                reason, detail = self._details[index]
                row = {"reason": reason, "origin": found.origin(index), "line": int(found.lines[index]), "detail": detail}
                file.write(json.dumps(row) + "\n")

    def notes(self) -> list[str]:
        """Lines for people: contamination by task."""
        return [
            f"contamination by {task}: {c['documents']:,} documents hold {c['found']:,} of {c['examples']:,} examples"
            + (f"; {c['unchecked']:,} are too short to look for" if c["unchecked"] else "")
            for task, c in self.contamination.items()
        ]


def find_removals(job: Job, found: Surveyed, scratch: Path) -> Removals:
    """Exact duplicates, then contamination, then near-duplicates among the rest; of equal ones the first in input order stays."""
    settings, removals = job.settings, Removals(len(found.pairs))
    if settings.exact_duplicates:
        _exact(job, found, removals)
    contamination = contamination_of(job)
    if contamination is not None:
        for index, detail, _ in found.contaminated:
            removals.add(index, "contaminated", detail)
        examples = ([tuple(e) for e in examples] for _, _, examples in found.contaminated)
        removals.contamination = contamination.summary(examples)
    if settings.near_duplicates is not None:
        _near(job, found, removals, scratch)
    return removals


def _exact(job: Job, found: Surveyed, removals: Removals) -> None:
    """Equal means equal in 128 bits of two hashes: texts that share the 64 bits of a key alone are all kept."""
    known = np.concatenate([known_keys(job, part) for part in ("train", "heldout")])
    first = exact_duplicates([known, found.pairs])[len(known) :]
    for index in np.flatnonzero(first >= 0).tolist():
        original = int(first[index]) - len(known)
        same = found.place(original) if original >= 0 else "a document that the directory has already"
        removals.add(index, "duplicate", f"same text as {same}")


def _near(job: Job, found: Surveyed, removals: Removals, scratch: Path) -> None:
    paths: list[Any] = [job.directory / job.result("survey", i, ".signatures.npy") for i in range(len(job.groups))]
    arrays = [np.load(path, mmap_mode="r") for path in paths]
    first = near_duplicates(arrays, job.settings.near_duplicates, ~removals.removed, scratch)
    again = np.flatnonzero(first >= 0)
    for index, original, similarity in zip(again.tolist(), first[again].tolist(), similarities(arrays, again, first[again])):
        removals.add(index, "near duplicate", f"similarity {similarity:.2f} to {found.place(original)}")
