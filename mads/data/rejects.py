"""What a preparation could not take: counted by kind, listed with its place."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from mads.data.schema import DataError

_DETAIL_LIMIT = 200  # characters of an explanation that are kept per reject
_ENTRIES_IN_MEMORY = 100_000
_ENTRIES_OF_A_FILE = 1_000_000  # that are listed one by one

Entry = tuple[str, str, int, str]  # reason, origin, line, detail


@dataclass
class _Run:
    """Neighbouring lines of one file that were not taken for the same reason."""

    reason: str
    origin: str
    line: int
    detail: str
    count: int

    def takes(self, reason: str, origin: str, line: int, detail: str) -> bool:
        """Whether that is the next line of this run."""
        return line == self.line + self.count and (reason, origin, detail) == (self.reason, self.origin, self.detail)

    def entry(self) -> Entry:
        detail = self.detail
        if self.count > 1:
            detail = f"{self.line} to {self.line + self.count - 1}" + (f": {detail}" if detail else "")
        return self.reason, self.origin, self.line, detail


class Rejects:
    """Everything that was not taken, by reason, with its place in the input.

    What is held does not grow with what a file holds: neighbouring lines that were not taken for the same reason with the same
    detail are one entry, "FIRST to LAST: detail"; of one file the first million entries are listed, and of the others one entry
    for each reason that says how many there are. The first 100,000 entries are in memory, the others in a temporary file.
    Iterating gives all of them.
    """

    def __init__(self):
        self._counts: Counter[str] = Counter()
        self._memory: list[Entry] = []
        self._others: IO[str] | None = None
        self._run: _Run | None = None  # not listed yet: it may go on
        self._file: tuple[str | None, int] = (None, 0)  # of the last listed run, and how many of it are listed
        self._unlisted: dict[tuple[str, str], _Run] = {}

    def add(self, reason: str, origin: str, line: int, detail: str = "", count: int = 1) -> None:
        """Record an input that was not taken, or `count` neighbouring ones from that line on.

        `reason` is a short kind that can be counted, `detail` is specific.
        """
        self._counts[reason] += count
        detail = detail[:_DETAIL_LIMIT]
        if self._run is not None and self._run.takes(reason, origin, line, detail):
            self._run.count += count
            return
        self._end_run()
        self._run = _Run(reason, origin, line, detail, count)

    def extend(self, other: Rejects) -> None:
        """Take over everything that `other` has."""
        self._counts.update(other._counts)
        self._end_run()
        for entry in other:
            self._list(entry)

    def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        origin, listed = self._file
        self._file = (run.origin, listed + 1 if run.origin == origin else 1)
        if self._file[1] <= _ENTRIES_OF_A_FILE:
            self._list(run.entry())
        else:
            rest = self._unlisted.setdefault((run.reason, run.origin), _Run(run.reason, run.origin, run.line, "", 0))
            rest.count += run.count

    def _list(self, entry: Entry) -> None:
        if len(self._memory) < _ENTRIES_IN_MEMORY:
            self._memory.append(entry)
            return
        if self._others is None:
            self._others = tempfile.TemporaryFile("w+", encoding="ascii", newline="\n")
        self._others.write(json.dumps(entry) + "\n")

    @property
    def entries(self) -> list[Entry]:
        """The first 100,000."""
        return list(islice(self, _ENTRIES_IN_MEMORY))

    def __iter__(self) -> Iterator[Entry]:
        """All entries in their order. Nothing may be added meanwhile."""
        self._end_run()
        yield from self._memory
        if self._others is not None:
            self._others.seek(0)
            for line in self._others:
                yield tuple(json.loads(line))
        for rest in self._unlisted.values():
            yield rest.reason, rest.origin, rest.line, f"{rest.count} such from here on are not listed one by one"

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
