"""The pool: every sample of one part of a prepared directory, with its attributes, memory-mapped."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mads.data.attributes import AttributeColumn, read_column
from mads.data.indexed import IndexedReader
from mads.data.schema import DataError, Manifest, sample_ids, split_ids


def shard_prefix(directory: str | os.PathLike, part: str, shard: int) -> Path:
    """Path of a shard's files without their .bin / .idx."""
    return Path(directory) / part / f"shard-{shard:05d}"


def attribute_path(directory: str | os.PathLike, part: str, name: str) -> Path:
    """Path of an attribute's column."""
    return Path(directory) / part / "attributes" / f"{name}.arrow"


class PoolView:
    """Attributes of some samples of a pool, in the order of their positions (mads.agents.base.AttributeView)."""

    def __init__(self, pool: Pool, positions: np.ndarray | slice):
        self._pool, self._positions = pool, positions
        self.ids = pool.ids[positions]
        self.lengths = pool.lengths[positions]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def attributes(self) -> tuple[str, ...]:
        return self._pool.attributes

    def codes(self, attribute: str) -> np.ndarray:
        return self._pool.codes(attribute)[self._positions]

    def labels(self, attribute: str) -> tuple[str, ...]:
        return self._pool.labels(attribute)

    def values(self, attribute: str) -> np.ndarray:
        return self._pool.values(attribute)[self._positions]


class Pool:
    """All samples of one part. A *position* is the rank of a sample's id among the pool's ids.

    ids: int64 [n], ascending
    lengths: int32 [n], tokens
    manifest, fingerprint: of the prepared directory (mads.data.schema.Manifest)
    """

    def __init__(self, manifest: Manifest, part: str, shards: list[IndexedReader], columns: dict[str, AttributeColumn]):
        self.manifest, self.part = manifest, part
        self.fingerprint = manifest.fingerprint
        self._shards, self._columns = shards, columns
        self._first = np.cumsum([0] + [len(s) for s in shards])  # position of each shard's first sample; the last is n
        self.ids = np.concatenate([sample_ids(i, len(s)) for i, s in enumerate(shards)])
        self.lengths = np.concatenate([s.lengths for s in shards])

    @classmethod
    def open(cls, directory: str | os.PathLike, part: str = "train") -> Pool:
        """Map the part's shards and columns.

        Raises:
            DataError: no manifest, no such part, an empty part, or a file that is not what the manifest says.
        """
        manifest = Manifest.read(directory)
        if part not in manifest.parts:
            raise DataError(f"{directory} has no part {part!r}, only {sorted(manifest.parts)}")
        expected = manifest.parts[part]["shards"]
        shards = [IndexedReader(shard_prefix(directory, part, i)) for i in range(len(expected))]
        if [len(s) for s in shards] != expected:
            raise DataError(f"{directory}/{part}: shards of {[len(s) for s in shards]} samples, the manifest says {expected}")
        samples = sum(expected)
        if samples == 0:
            raise DataError(f"{directory}/{part} holds no sample; prepare more data (or a larger heldout_fraction)")
        columns = {a.name: read_column(attribute_path(directory, part, a.name), samples) for a in manifest.attributes}
        for attribute in manifest.attributes:
            if columns[attribute.name].schema.labels != attribute.labels:
                raise DataError(f"{directory}/{part}: labels of {attribute.name!r} are not the manifest's; prepare it again")
        pool = cls(manifest, part, shards, columns)
        if pool.lengths.max() > manifest.seq_length or pool.lengths.min() < 1:
            raise DataError(
                f"{directory}/{part}: samples of {pool.lengths.min()} to {pool.lengths.max()} tokens; "
                f"the manifest says 1 to {manifest.seq_length}; prepare the data again"
            )
        return pool

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(self._columns)

    def _column(self, attribute: str) -> AttributeColumn:
        if attribute not in self._columns:
            raise DataError(f"no attribute {attribute!r} in the pool; it has {sorted(self._columns)}")
        return self._columns[attribute]

    def codes(self, attribute: str) -> np.ndarray:
        """Label codes, uint16 [n]."""
        return self._column(attribute).codes

    def labels(self, attribute: str) -> tuple[str, ...]:
        """Names of the codes 0, 1, ..."""
        return self._column(attribute).schema.labels

    def values(self, attribute: str) -> np.ndarray:
        """Continuous value, float32 [n]. Raises DataError if the attribute has none."""
        values = self._column(attribute).values
        if values is None:
            continuous = sorted(name for name, column in self._columns.items() if column.values is not None)
            raise DataError(f"attribute {attribute!r} has labels only, no continuous value; those with one: {continuous}")
        return values

    def view(self, positions: np.ndarray | slice) -> PoolView:
        """Attributes of the samples at `positions`; a slice copies nothing."""
        return PoolView(self, positions if isinstance(positions, slice) else self._checked(positions))

    def slice_bounds(self, rank: int, count: int) -> tuple[int, int]:
        """(start, stop) of slice `rank` of `count` contiguous slices whose sizes differ by at most one."""
        if not 0 <= rank < count:
            raise ValueError(f"slice {rank} of {count} does not exist")
        return rank * len(self) // count, (rank + 1) * len(self) // count

    def positions_of(self, ids: np.ndarray) -> np.ndarray:
        """Position of each id, int64, in the order given.

        Raises:
            DataError: an id that the pool does not hold.
        """
        ids = np.asarray(ids, dtype=np.int64)
        shards, rows = split_ids(ids)
        sizes = np.diff(self._first)
        known = (shards >= 0) & (shards < len(sizes))
        known[known] = rows[known] < sizes[shards[known]]
        if not known.all():
            raise DataError(
                f"{int((~known).sum())} of {len(ids)} sample ids are not in the pool of {len(self)} samples, "
                f"the first is {int(ids[np.argmin(known)])}: they belong to other data"
            )
        return self._first[shards] + rows

    def tokens(self, positions: np.ndarray) -> list[np.ndarray]:
        """Token ids of the samples at `positions`: read-only views of the files, uint16 or int32 [length of the sample]."""
        positions = self._checked(positions)
        shards = np.searchsorted(self._first, positions, side="right") - 1
        rows = positions - self._first[shards]
        return [self._shards[s][r] for s, r in zip(shards.tolist(), rows.tolist())]

    def _checked(self, positions: np.ndarray) -> np.ndarray:
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and not (0 <= positions.min() and positions.max() < len(self)):
            raise DataError(f"positions from {positions.min()} to {positions.max()} in a pool of {len(self)} samples")
        return positions
