"""A pool that grows while a run trains on it: which shards the run knows from which round on.

`RUN/pool.jsonl` has a line for the pool that the run began with and one for each addition that it took up, written before the
decision that first uses it. Unlike metrics and decisions the file is never cut back: a run that goes on from a checkpoint before
an addition takes the addition up in the same round again, so its curve is that of the run that was not interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from mads.data.pool import Pool
from mads.data.schema import DataError

FILE = "pool.jsonl"


@dataclass(frozen=True)
class PoolEntry:
    """The pool from `round` on: its first `shards` shards of the training part, `samples` and `tokens` in all."""

    round: int
    shards: int
    samples: int
    tokens: int
    fingerprint: str

    @classmethod
    def of(cls, round_: int, pool: Pool) -> PoolEntry:
        return cls(round_, len(pool.shards), len(pool), pool.total_tokens, pool.fingerprint)


class PoolHistory:
    """The entries of a run folder, oldest first; rounds and shards ascend.

    Raises:
        DataError: a file that is no pool history. A last line that was cut off by a kill is none: nothing was decided on it.
    """

    def __init__(self, run_dir: str | os.PathLike):
        self.path = Path(run_dir) / FILE
        self.entries: list[PoolEntry] = []
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n") and number == len(lines):
                break
            try:
                self.entries.append(PoolEntry(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise DataError(f"{self.path}:{number} is no line of a pool history ({error}); choose another run_dir") from error
        rounds, shards = ([getattr(e, key) for e in self.entries] for key in ("round", "shards"))
        if rounds != sorted(set(rounds)) or shards != sorted(set(shards)):
            raise DataError(f"{self.path}: rounds {rounds} and shards {shards} do not ascend; choose another run_dir")

    def at(self, round_: int) -> PoolEntry | None:
        """The pool that `round_` was, or is to be, decided on; None in a run without history."""
        return next((entry for entry in reversed(self.entries) if entry.round <= round_), None)

    def is_replay(self, round_: int) -> bool:
        """Whether the run was in this round, or past it, when it last took shards up: it takes none up sooner than it did."""
        return bool(self.entries) and round_ <= self.entries[-1].round

    def append(self, entry: PoolEntry) -> None:
        """Add an entry, on disk when this returns."""
        self.entries.append(entry)
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "w", encoding="ascii") as file:
            file.writelines(json.dumps(dataclasses.asdict(e)) + "\n" for e in self.entries)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
