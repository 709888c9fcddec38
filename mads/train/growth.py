"""A pool that grows while a run trains on it: which shards the run knows from which round on.

`RUN/pool.jsonl` has a line for the pool that the run began with and one for each addition that it took up, written before the
decision that first uses it. Unlike metrics and decisions the file is never cut back: a run that goes on from a checkpoint before
an addition takes the addition up in the same round again, so its curve is that of the run that was not interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from mads.checkpoint.canonical import read_state
from mads.collectives import assert_equal_on_ranks, broadcast_json
from mads.console.exchange import raise_together
from mads.data.pool import Pool
from mads.data.schema import DataError, Manifest
from mads.topology import Topology
from mads.train.ledgers import grow_ledger

FILE = "pool.jsonl"
_PATIENCE_S = 60.0  # a network file system may show a rank the former manifest for a while


@dataclass(frozen=True)
class PoolEntry:
    """The pool from `round` on: its first `shards` shards of the training part, `samples` and `tokens` in all.

    heldout_shards: of the part that the run is evaluated on, which stays as it was at the beginning
    """

    round: int
    shards: int
    samples: int
    tokens: int
    fingerprint: str
    heldout_shards: int

    def __post_init__(self):
        counts = (self.round, self.shards, self.samples, self.tokens, self.heldout_shards)
        if not all(type(count) is int and count >= 0 for count in counts) or not isinstance(self.fingerprint, str):
            raise TypeError("a count is no whole number of 0 or more, or the fingerprint is no text")

    @classmethod
    def of(cls, round_: int, pool: Pool, heldout_shards: int) -> PoolEntry:
        return cls(round_, len(pool.shards), len(pool), pool.total_tokens, pool.fingerprint, heldout_shards)


class PoolHistory:
    """The entries of a run, oldest first; rounds and shards ascend."""

    def __init__(self, run_dir: str | os.PathLike, entries: list[PoolEntry]):
        self.path, self.entries = Path(run_dir) / FILE, entries

    @classmethod
    def read(cls, run_dir: str | os.PathLike) -> PoolHistory:
        """The history of a run folder. A last line that was cut off by a kill does not count: nothing was decided on it.

        Raises:
            DataError: a file that is no pool history.
        """
        history = cls(run_dir, [])
        lines = history.path.read_bytes().splitlines(keepends=True) if history.path.is_file() else []
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n") and number == len(lines):
                break
            try:
                history.entries.append(PoolEntry(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{history.path}:{number} is no line of a pool history ({error}); choose another run_dir"
                ) from error
        rounds, shards = ([getattr(e, key) for e in history.entries] for key in ("round", "shards"))
        if rounds != sorted(set(rounds)) or shards != sorted(set(shards)):
            raise DataError(f"{history.path}: rounds {rounds} and shards {shards} do not ascend; choose another run_dir")
        return history

    def append(self, entry: PoolEntry) -> None:
        """Add an entry, on disk when this returns."""
        self.entries.append(entry)
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "w", encoding="ascii") as file:
            file.writelines(json.dumps(dataclasses.asdict(e)) + "\n" for e in self.entries)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def shards_for(self, round_: int, pool: Pool, directory: str | os.PathLike, follow: bool) -> int:
        """How many shards `round_` is to be decided on.

        A round that the run was in before, when it last took shards up or earlier, gets what it got. A later one gets `pool` as
        it is, or if `follow` all that the directory holds by now.

        Raises:
            DataError: the directory is no longer readable.
        """
        if self.entries and round_ <= self.entries[-1].round:
            return next(e.shards for e in reversed(self.entries) if e.round <= round_)
        return max(len(pool.shards), len(Manifest.read(directory).parts[pool.part]["shards"])) if follow else len(pool.shards)


def open_history(run_dir: str | os.PathLike, topology: Topology, fresh: bool, trunk: Path | None = None) -> PoolHistory:
    """Collective: the run's history, the same on every rank; only rank 0 is to append to it. A fresh run begins a new one, a run
    that branches from the checkpoint `trunk` one with what was known there.

    Raises:
        DataError: on rank 0, RankFailedError elsewhere: the file is no pool history.
    """
    history, error = PoolHistory(run_dir, []), None
    if topology.rank == 0:
        try:
            if (fresh or trunk) and history.path.is_file():
                history.path.unlink()
            history = _inherited(run_dir, trunk) if trunk else PoolHistory.read(run_dir)
        except DataError as caught:  # told to the other ranks, then raised
            error = caught
    raise_together(error, topology, "reading the pool history")
    told = broadcast_json([dataclasses.asdict(e) for e in history.entries], topology.group("control"))
    return PoolHistory(run_dir, [PoolEntry(**e) for e in told])


def _inherited(run_dir: str | os.PathLike, trunk: Path) -> PoolHistory:
    """The history of the trunk's run up to the checkpoint, written to the branch's folder."""
    known = read_state(trunk)[0]["loader"]["shards"]
    history = PoolHistory(run_dir, [])
    history.path.parent.mkdir(parents=True, exist_ok=True)
    for entry in PoolHistory.read(trunk.parent.parent).entries:
        if entry.shards <= known:
            history.append(entry)
    return history


def open_longer(directory: str | os.PathLike, pool: Pool, shards: int) -> Pool:
    """The pool with `shards` shards, the first of which are those of `pool`, with the same labels.

    Raises:
        DataError: the directory does not hold so many shards, or what was there has changed.
    """
    start = time.monotonic()
    while (held := len(Manifest.read(directory).parts[pool.part]["shards"])) < shards and time.monotonic() - start < _PATIENCE_S:
        time.sleep(1.0)
    longer = Pool.open(directory, pool.part, shards)
    manifest, count = longer.manifest, len(pool.shards)
    if manifest.shards_fingerprint(pool.part, count) != pool.fingerprint:
        raise DataError(
            f"the first {count} of {held} shards in {directory} are not those that this run trains on; a pool grows by "
            "`mads prepare --append` only: restore them, or start a new run"
        )
    changed = [
        name
        for name in pool.attributes
        if name not in longer.attributes
        or manifest.attribute_fingerprint(pool.part, name, count) != pool.attribute_fingerprint(name)
    ]
    if changed:
        raise DataError(
            f"attributes {changed} of {directory} were removed or labelled anew while a run trains on them; restore them, or "
            "end the run and start a new one"
        )
    return longer


def grow(parts, history: PoolHistory, directory: str | os.PathLike, follow: bool, topology: Topology) -> str | None:
    """Collective, between two rounds: let `parts` (mads.train.setup.Parts) go on with the shards that the next round is to know.
    Old samples keep ids, positions and use counts; new ones were used 0 times.

    Returns:
        a line about what was taken up, None if there was nothing.

    Raises:
        DataError, ValueError: on the rank that found it, RankFailedError on the others: what was there has changed.
    """
    round_, before, shards, pool, error = parts.console.round, parts.pool, 0, None, None
    control = topology.group("control")
    if topology.rank == 0:
        try:
            shards = history.shards_for(round_, before, directory, follow)
        except DataError as caught:  # told to the other ranks, then raised
            error = caught
    raise_together(error, topology, "looking for new shards")
    shards = broadcast_json(shards, control)
    if shards == len(before.shards):
        return None
    try:
        pool = open_longer(directory, before, shards)
    except DataError as caught:  # told to the other ranks, then raised
        error = caught
    raise_together(error, topology, "opening the new shards")
    assert_equal_on_ranks(pool.fingerprint, control, "the fingerprint of the longer pool")
    parts.console.rebind(pool)
    parts.ledger = grow_ledger(parts.ledger, pool, topology, history.path.with_name("ledger.growing"))
    parts.loader.rebind(pool)
    parts.pool = pool
    if topology.rank == 0 and round_ > history.entries[-1].round:
        history.append(PoolEntry.of(round_, pool, history.entries[0].heldout_shards))
    return (
        f"the pool has grown from {len(before.shards)} to {shards} shards: {len(pool) - len(before):,} samples with "
        f"{pool.total_tokens - before.total_tokens:,} tokens were added, it holds {len(pool):,} samples now"
    )
