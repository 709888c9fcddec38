"""Reference tasks: the texts whose loss rewards are about, each in three parts: for direction, audit and report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mads import noise
from mads.data.schema import DataError

PARTS = ("direction", "audit", "report")


@dataclass(frozen=True)
class ReferenceTask:
    """One task: per part, examples; per example, its windows of at most seq_length tokens (int arrays)."""

    name: str
    parts: dict[str, list[list[np.ndarray]]]

    def windows(self, part: str, limit: int, seed: int, round_: int = 0) -> list[np.ndarray]:
        """Windows of `limit` examples drawn by hash (all if the part has fewer)."""
        examples = self.parts[part]
        order = np.argsort(noise.hash64(seed, f"reference/{self.name}/{part}", round_, np.arange(len(examples))), kind="stable")
        return [window for i in sorted(order[:limit]) for window in examples[i]]


def load_references(prepared_dir: str | Path, tasks: list[str], tokenizer, seq_length: int) -> list[ReferenceTask]:
    """Read references/TASK.jsonl of a prepared directory and tokenise it.

    Raises:
        DataError: if there are no tasks, or a part of one has no example with at least two tokens.
    """
    if not tasks:
        raise DataError(
            f"{prepared_dir} has no reference tasks, so no rewards can be computed; "
            "prepare with data.references (or data.reference_paths={task: file.jsonl}), or train with selection=random"
        )
    result = []
    for task in tasks:
        path = Path(prepared_dir) / "references" / f"{task}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        parts: dict[str, list[list[np.ndarray]]] = {part: [] for part in PARTS}
        for row, tokens in zip(rows, tokenizer.encode([row["text"] for row in rows])):
            windows = [tokens[i : i + seq_length] for i in range(0, len(tokens), seq_length)]
            windows = [w for w in windows if len(w) > 1]  # a single token has no target
            if windows:
                parts[row["part"]].append(windows)
        empty = [part for part in PARTS if not parts[part]]
        if empty:
            raise DataError(
                f"reference task {task!r} has no usable example in its parts {empty}; give it more examples ({len(rows)} now)"
            )
        result.append(ReferenceTask(task, parts))
    return result
