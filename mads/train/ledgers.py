"""The ledger's slices on all ranks and its one file. Collective: mads.data knows no other ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mads.collectives import stream_to_first
from mads.console.choose import own_slice
from mads.console.exchange import raise_together
from mads.data.ledger import Ledger
from mads.topology import Topology


def save_ledger(ledger: Ledger, path: Path, topology: Topology) -> None:
    """Rank 0 writes what all ranks send it, a chunk at a time. Raises OSError there if it cannot."""
    group = topology.group("control")
    ledger.save(path, lambda counts, write: stream_to_first(counts, group, write), writes=topology.rank == 0)


def grow_ledger(ledger: Ledger, pool: Any, topology: Topology, scratch: Path) -> Ledger:
    """The ledger for a longer pool whose first samples are those of the one before: old counts stay, new ones are 0, and slices
    are cut anew. It goes through a file at `scratch`, which all ranks see and which is removed again.

    Raises:
        OSError, DataError: if the file cannot be written or read; RankFailedError on the other ranks.
    """
    error, grown = None, None
    try:
        save_ledger(ledger, scratch, topology)
    except OSError as caught:  # told to the other ranks, then raised
        error = caught
    raise_together(error, topology, "writing the ledger")
    try:
        grown = Ledger.load(scratch, len(pool), *own_slice(pool, topology), saved=ledger.size)
    except ValueError as caught:  # told to the other ranks, then raised
        error = caught
    raise_together(error, topology, "reading the ledger")
    if topology.rank == 0:
        scratch.unlink()
    return grown
