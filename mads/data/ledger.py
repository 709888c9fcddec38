"""The ledger: how often each sample was trained on."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np

from mads.data.schema import DataError

_TRAILER = 8 + 32  # total as little-endian uint64, then the SHA-256 of everything before it


class Ledger:
    """Use counts per pool position. Every rank holds the same ledger: it is advanced with the samples of the *global* batch.

    counts: uint16 [size], saturating at 65535
    total: samples consumed so far; equals counts.sum() as long as no count is saturated
    """

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"a ledger needs at least one sample, got {size}")
        self.counts = np.zeros(size, dtype=np.uint16)
        self.total = 0

    def consume(self, positions: np.ndarray) -> None:
        """Count one use of each position; a position that occurs twice counts twice.

        Raises:
            DataError: a position outside the pool.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if not positions.size:
            return
        if positions.min() < 0 or positions.max() >= len(self.counts):
            raise DataError(f"positions from {positions.min()} to {positions.max()} in a ledger of {len(self.counts)} samples")
        unique, uses = np.unique(positions, return_counts=True)
        limit = np.iinfo(np.uint16).max
        self.counts[unique] = np.minimum(self.counts[unique] + uses, limit).astype(np.uint16)
        self.total += len(positions)

    def save(self, path: str | os.PathLike) -> None:
        """Write atomically: a .npy array that any NumPy reads, followed by a trailer with the total and a SHA-256."""
        path = Path(path)
        buffer = io.BytesIO()
        np.save(buffer, self.counts, allow_pickle=False)
        buffer.write(self.total.to_bytes(8, "little"))
        raw = buffer.getvalue()
        temporary = path.with_name(path.name + ".tmp")
        with open(temporary, "wb") as f:
            f.write(raw + hashlib.sha256(raw).digest())
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike, size: int) -> Ledger:
        """Read a ledger of a pool of `size` samples.

        Raises:
            DataError: the file is missing, damaged, or of a pool of another size.
        """
        try:
            raw = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the ledger {path} ({error.strerror}); resume from an older checkpoint") from error
        if len(raw) < _TRAILER or hashlib.sha256(raw[:-32]).digest() != raw[-32:]:
            raise DataError(
                f"the ledger {path} ({len(raw)} bytes) is damaged: its SHA-256 does not fit; resume from an older checkpoint"
            )
        counts = np.load(io.BytesIO(raw[:-_TRAILER]), allow_pickle=False)
        if counts.dtype != np.uint16 or counts.shape != (size,):
            raise DataError(f"the ledger {path} counts {counts.shape[0]} samples, the pool has {size}: it belongs to other data")
        ledger = cls(size)
        ledger.counts, ledger.total = counts, int.from_bytes(raw[-_TRAILER:-32], "little")
        return ledger
