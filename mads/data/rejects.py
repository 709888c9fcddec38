"""What a preparation could not take: counted by kind, listed with its place."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from mads.data.schema import DataError

_DETAIL_LIMIT = 200  # characters of an explanation that are kept per reject
_ENTRIES_IN_MEMORY = 100_000


class Rejects:
    """Everything that was not taken, by reason, with its place in the input.

    The first 100,000 `entries` are in memory, the others in a temporary file; iterating gives all of them.
    """

    def __init__(self):
        self.entries: list[tuple[str, str, int, str]] = []  # (reason, origin, line, detail)
        self._counts: Counter[str] = Counter()
        self._others: IO[str] | None = None

    def add(self, reason: str, origin: str, line: int, detail: str = "", count: int = 1) -> None:
        """Record an input that was not taken, or `count` inputs from that line on as one entry.

        `reason` is a short kind that can be counted, `detail` is specific.
        """
        self._counts[reason] += count
        self._list((reason, origin, line, detail[:_DETAIL_LIMIT]))

    def extend(self, other: Rejects) -> None:
        """Take over everything that `other` has."""
        self._counts.update(other._counts)
        for entry in other:
            self._list(entry)

    def _list(self, entry: tuple[str, str, int, str]) -> None:
        if len(self.entries) < _ENTRIES_IN_MEMORY:
            self.entries.append(entry)
            return
        if self._others is None:
            self._others = tempfile.TemporaryFile("w+", encoding="ascii", newline="\n")
        self._others.write(json.dumps(entry) + "\n")

    def __iter__(self) -> Iterator[tuple[str, str, int, str]]:
        """All entries in their order. Nothing may be added meanwhile."""
        yield from self.entries
        if self._others is not None:
            self._others.seek(0)
            for line in self._others:
                yield tuple(json.loads(line))

    @property
    def counts(self) -> dict[str, int]:
        return {reason: self._counts[reason] for reason in sorted(self._counts)}

    @property
    def total(self) -> int:
        return self._counts.total()

    def write(self, path: str | os.PathLike) -> None:
        """Write all entries as JSON lines {"reason", "origin", "line", "detail"}, atomically; an empty file if there are none."""
        temporary = Path(f"{os.fspath(path)}.tmp")
        with open(temporary, "w", encoding="ascii", newline="\n") as file:
            for reason, origin, line, detail in self:
                file.write(json.dumps({"reason": reason, "origin": origin, "line": line, "detail": detail}) + "\n")
        os.replace(temporary, path)

    def raise_if_too_many(self, accepted: int, max_fraction: float, shown: int = 5) -> None:
        """Stop when more than `max_fraction` of accepted + rejected inputs were rejected.

        Raises:
            DataError: with the counts by reason and the first `shown` entries.
        """
        raise_if_too_many(self._counts, self.entries[:shown], accepted, max_fraction)


def raise_if_too_many(counts: Counter[str], first: Sequence[Sequence], accepted: int, max_fraction: float) -> None:
    """Stop when more than `max_fraction` of accepted + rejected inputs were rejected.

    Args:
        counts: reason -> number
        first: some entries (reason, origin, line, detail) to show

    Raises:
        DataError: with both.
    """
    total = counts.total()
    seen = accepted + total
    if total <= max_fraction * seen:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    shown = "\n".join(
        f"  {origin}:{line}: {reason}" + (f" ({detail})" if detail else "") for reason, origin, line, detail in first
    )
    raise DataError(
        f"{total} of {seen} inputs were rejected, more than the allowed {max_fraction:.1%}: {reasons}. "
        f"The first:\n{shown}\n"
        "Mend the input, check data.text_field and data.domain_field, or raise data.max_rejected_fraction"
    )
