"""What the survey looks for in each text, so that the plan can remove documents: examples of tasks, and signatures."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np

from mads.data.prepare.job import Job
from mads.hygiene.contamination import Contamination
from mads.hygiene.minhash import SLOTS, signatures

_BATCH_CHARACTERS = 1 << 20


class Observer:
    """Goes through the texts of a group in their order.

    contaminated: (number of the text, detail, examples) of those that share words with reference or evaluation examples
    signatures: uint32 [n, SLOTS], or None if near-duplicates are not looked for
    """

    def __init__(self, job: Job):
        self._contamination = contamination_of(job)
        self._texts: list[str] = []
        self._size = self._before = 0
        self._signatures = [np.zeros((0, SLOTS), np.uint32)] if job.settings.near_duplicates is not None else None
        self.contaminated: list[tuple[int, str, list]] = []

    def add(self, text: str) -> None:
        """Take the next text."""
        if self._contamination is None and self._signatures is None:
            return
        self._texts.append(text)
        self._size += len(text)
        if self._size >= _BATCH_CHARACTERS:
            self.finish()

    def finish(self) -> None:
        """Look at the texts that wait."""
        texts, self._texts = self._texts, []
        if self._contamination is not None:
            for i, hit in enumerate(self._contamination.hits(texts), self._before):
                if hit is not None:
                    self.contaminated.append((i, hit.detail, list(hit.examples)))
        if self._signatures is not None:
            self._signatures.append(signatures(texts))
        self._before += len(texts)
        self._size = 0

    @property
    def signatures(self) -> np.ndarray | None:
        return None if self._signatures is None else np.concatenate(self._signatures)


def contamination_of(job: Job) -> Contamination | None:
    """Finds the directory's references and the evaluation sets; None if that is not asked for, or there are none."""
    if not job.settings.decontaminate:
        return None
    files = [*sorted((job.directory / "references").glob("*.jsonl")), job.work / "references" / "evaluation.jsonl"]
    stats = [path.stat() for path in files]
    return _contamination(tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in zip(files, stats)))


@functools.lru_cache(maxsize=1)  # a process surveys many groups
def _contamination(files: tuple[tuple[str, int, int], ...]) -> Contamination | None:
    tasks: dict[str, list[tuple[str, str]]] = {}
    for path, _, _ in files:
        name, references = Path(path).stem, set(tasks)
        with open(path, encoding="ascii") as file:
            for row in map(json.loads, file):
                task = row.get("task", name)
                # A task may be a reference and an evaluation set; its examples are numbered in each.
                task = f"{task} (evaluation)" if "task" in row and task in references else task
                tasks.setdefault(task, []).append((row["id"], row["text"]))
    return Contamination(tasks) if tasks else None
