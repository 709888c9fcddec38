"""The ledger: how often each sample was trained on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mads.data.schema import DataError

_TRAILER = 8 + 32  # total as little-endian uint64, then the SHA-256 of everything before it
_BLOCK = 1 << 24  # bytes read at a time

Stream = Callable[[np.ndarray, Callable[[np.ndarray], None]], None]


def _alone(counts: np.ndarray, write: Callable[[np.ndarray], None]) -> None:
    write(counts)


class Ledger:
    """Use counts of a slice of the pool. Every rank's ledger is advanced with the samples of the *global* batch and counts
    those that lie in its slice; together the slices are the pool.

    counts: uint16 [stop - start], saturating at 65535
    total: samples consumed so far on all ranks; equals the sum of all slices' counts as long as no count is saturated
    """

    def __init__(self, size: int, start: int = 0, stop: int | None = None):
        stop = size if stop is None else stop
        if size < 1 or not 0 <= start <= stop <= size:
            raise ValueError(f"a ledger needs at least one sample and a slice of them, got {start} to {stop} of {size}")
        self.size, self.start, self.stop = size, start, stop
        self.counts = np.zeros(stop - start, dtype=np.uint16)
        self.total = 0

    def consume(self, positions: np.ndarray) -> None:
        """Count one use of each pool position; a position that occurs twice counts twice.

        Raises:
            DataError: a position outside the pool.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if not positions.size:
            return
        if positions.min() < 0 or positions.max() >= self.size:
            raise DataError(f"positions from {positions.min()} to {positions.max()} in a ledger of {self.size} samples")
        own = positions[(positions >= self.start) & (positions < self.stop)] - self.start
        unique, uses = np.unique(own, return_counts=True)
        limit = np.iinfo(np.uint16).max
        self.counts[unique] = np.minimum(self.counts[unique] + uses, limit).astype(np.uint16)
        self.total += len(positions)

    # ------------------------------------------------------------ one file for the whole pool

    def save(self, path: str | os.PathLike, stream: Stream = _alone, writes: bool = True) -> None:
        """Write all slices atomically: a .npy array that any NumPy reads, followed by a trailer with the total and a SHA-256.

        Args:
            stream: gets this slice's counts, and a function to be called with all slices' counts in pool order, a piece at a
                time, on the rank that writes. Ranks take part together.
            writes: whether this is that rank.

        Raises:
            OSError: on the rank that writes, after all slices have arrived, so that no other rank waits.
        """
        writer = _Writer(Path(path), self.size, self.total)
        stream(self.counts, writer.write)
        if writes:
            writer.close()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        size: int,
        start: int = 0,
        stop: int | None = None,
        saved: int | None = None,
        verified: bool = False,
    ) -> Ledger:
        """Read samples `start` to `stop` of the ledger of a pool of `size` samples, at any number of ranks.

        Args:
            saved: samples that the pool had when the ledger was saved (None: as many as now); those added since count 0.
            verified: the file's hash was checked just now.

        Raises:
            DataError: the file is missing, damaged, or of a pool of another size.
        """
        saved, ledger = size if saved is None else saved, cls(size, start, stop)
        header = _header(saved)
        try:
            with open(path, "rb") as file:
                length = os.fstat(file.fileno()).st_size
                held = (length - len(header) - _TRAILER) // 2
                damaged = length < _TRAILER or not (verified or _intact(file, length))
                file.seek(0)
                if damaged:
                    raise DataError(
                        f"the ledger {path} ({length} bytes) is damaged: its SHA-256 does not fit; resume from an older "
                        "checkpoint"
                    )
                if held != saved or file.read(len(header)) != header:
                    raise DataError(f"the ledger {path} counts {held} samples, the pool has {saved}: it belongs to other data")
                known = max(0, min(ledger.stop, saved) - ledger.start)
                file.seek(len(header) + 2 * ledger.start if known else 0)
                ledger.counts[:known] = np.fromfile(file, "<u2", known)
                file.seek(length - _TRAILER)
                ledger.total = int.from_bytes(file.read(8), "little")
        except OSError as error:
            raise DataError(f"cannot read the ledger {path} ({error.strerror}); resume from an older checkpoint") from error
        return ledger


class _Writer:
    """Writes a ledger's file from pieces of its counts. An error is kept until `close`, for other ranks may be sending."""

    def __init__(self, path: Path, size: int, total: int):
        self._path, self._temporary = path, path.with_name(path.name + ".tmp")
        self._size, self._total, self._written = size, total, 0
        self._hash, self._file, self._error = hashlib.sha256(), None, None

    def write(self, counts: np.ndarray) -> None:
        self._written += len(counts)
        self._put(np.ascontiguousarray(counts, dtype="<u2").tobytes())

    def _put(self, raw: bytes) -> None:
        try:
            if self._error is None:
                if self._file is None:
                    self._file = open(self._temporary, "wb")
                    self._put(_header(self._size))
                self._file.write(raw)
                self._hash.update(raw)
        except OSError as error:
            self._error = error

    def close(self) -> None:
        if self._written != self._size:
            raise DataError(
                f"counts of {self._written} samples came for a ledger of {self._size}: slices are missing or twice there"
            )
        self._put(self._total.to_bytes(8, "little"))
        self._put(self._hash.digest())
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, os.fspath(self._temporary)) from self._error
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._temporary, self._path)


def _header(size: int) -> bytes:
    """The .npy header of `size` counts, as np.save writes it."""
    text = f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({size},), }}"
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _intact(file, length: int) -> bool:
    """Whether the file ends with the hash of what comes before it; read a block at a time."""
    digest, left = hashlib.sha256(), length - 32
    while left > 0:
        block = file.read(min(left, _BLOCK))
        digest.update(block)
        left -= len(block)
    return left == 0 and file.read() == digest.digest()
