"""Documents: what a preparation reads, and what it could not read.

A source yields documents in a fixed order and hands everything that it does not yield to `Rejects`: each input line or member
is either a document or an entry in the list of rejects, never neither.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mads.data.schema import DataError

_DETAIL_LIMIT = 200  # characters of an explanation that are kept per reject


@dataclass(frozen=True)
class Document:
    """One text. `origin` is a file or archive member by its relative name, `line` its 1-based position in there."""

    text: str
    domain: str
    origin: str
    line: int


class Rejects:
    """Everything that was not taken, by reason, with its place in the input."""

    def __init__(self):
        self.entries: list[tuple[str, str, int, str]] = []  # (reason, origin, line, detail)
        self._counts: Counter[str] = Counter()

    def add(self, reason: str, origin: str, line: int, detail: str = "") -> None:
        """Record one input that was not taken; `reason` is a short kind that can be counted, `detail` is specific."""
        self._counts[reason] += 1
        self.entries.append((reason, origin, line, detail[:_DETAIL_LIMIT]))

    @property
    def counts(self) -> dict[str, int]:
        return {reason: self._counts[reason] for reason in sorted(self._counts)}

    @property
    def total(self) -> int:
        return len(self.entries)

    def write(self, path: str | os.PathLike) -> None:
        """Write all entries as JSON lines {"reason", "origin", "line", "detail"}, atomically; an empty file if there are none."""
        temporary = Path(f"{os.fspath(path)}.tmp")
        with open(temporary, "w", encoding="ascii", newline="\n") as file:
            for reason, origin, line, detail in self.entries:
                file.write(json.dumps({"reason": reason, "origin": origin, "line": line, "detail": detail}) + "\n")
        os.replace(temporary, path)

    def raise_if_too_many(self, accepted: int, max_fraction: float, shown: int = 5) -> None:
        """Stop when more than `max_fraction` of accepted + rejected inputs were rejected.

        Raises:
            DataError: with the counts by reason and the first `shown` entries.
        """
        seen = accepted + self.total
        if self.total <= max_fraction * seen:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._counts.most_common())
        first = "\n".join(f"  {origin}:{line}: {reason}" + (f" ({detail})" if detail else "")
                          for reason, origin, line, detail in self.entries[:shown])
        raise DataError(
            f"{self.total} of {seen} inputs were rejected, more than the allowed {max_fraction:.1%}: {reasons}. The first:\n{first}\n"
            "Mend the input, check data.text_field and data.domain_field, or raise data.max_rejected_fraction"
        )


class Source(Protocol):
    """Where documents come from."""

    def documents(self, rejects: Rejects) -> Iterator[Document]:
        """Yield all documents in an order that depends on the input and the settings alone."""
        ...

    def describe(self) -> dict[str, Any]:
        """Settings and provenance as JSON values, for the manifest; no absolute path."""
        ...


def without_duplicates(documents: Iterable[Document], rejects: Rejects) -> Iterator[Document]:
    """Pass on the first of several documents with exactly the same text; the others are rejected as "duplicate"."""
    seen: dict[bytes, tuple[str, int]] = {}
    for document in documents:
        digest = hashlib.blake2b(document.text.encode("utf-8"), digest_size=16).digest()
        first = seen.setdefault(digest, (document.origin, document.line))
        if first == (document.origin, document.line):
            yield document
        else:
            rejects.add("duplicate", document.origin, document.line, f"same text as {first[0]}:{first[1]}")
