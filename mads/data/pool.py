"""The pool: every sample of one part of a prepared directory, with its attributes, memory-mapped."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mads.data.attributes import AttributeColumn, read_column
from mads.data.columns import IdColumn, ShardedColumn
from mads.data.indexed import IndexedReader, TokenShards
from mads.data.schema import AttributeSchema, DataError, Manifest, shard_name, split_ids


def shard_prefix(directory: str | os.PathLike, part: str, shard: int) -> Path:
    """Path of a shard's files without their .bin / .idx."""
    return Path(directory) / part / shard_name(shard)


def attribute_path(directory: str | os.PathLike, part: str, folder: str, shard: int) -> Path:
    """Path of an attribute's column over a shard; `folder` is AttributeSchema.folder."""
    return Path(directory) / part / "attributes" / folder / f"{shard_name(shard)}.arrow"


def key_path(directory: str | os.PathLike, part: str, shard: int) -> Path:
    """Path of the hashes of a shard's documents, by which a document that is added later is known to be there already."""
    return Path(directory) / part / "keys" / f"{shard_name(shard)}.npy"


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

    ids: int64 [n], ascending; lengths: int32 [n], tokens; both columns (mads.data.columns)
    shards: samples of each shard; readers: their token files; token_shards: all of them as one
    manifest: of the prepared directory; fingerprint: of the shards that are open (which samples have which ids)
    total_tokens: the sum of lengths
    """

    def __init__(self, manifest: Manifest, part: str, shards: list[IndexedReader], columns: dict[str, list[AttributeColumn]]):
        self.manifest, self.part = manifest, part
        self.fingerprint = manifest.shards_fingerprint(part, len(shards))
        self.shards = tuple(len(shard) for shard in shards)
        self.readers, self.token_shards = tuple(shards), TokenShards(shards)
        self.ids = IdColumn(self.shards)
        self.lengths = ShardedColumn([shard.lengths for shard in shards], np.dtype("<i4"))
        self.total_tokens = sum(int(shard.lengths.sum(dtype=np.int64)) for shard in shards)
        # Labels are those of the open shards: later ones may have brought more.
        self._schemas = {name: max((c.schema for c in own), key=lambda s: len(s.labels)) for name, own in columns.items()}
        self._codes = {name: ShardedColumn([c.codes for c in own], np.dtype(np.uint16)) for name, own in columns.items()}
        self._values = {
            name: ShardedColumn([c.values for c in own], np.dtype(np.float32))
            for name, own in columns.items()
            if self._schemas[name].continuous
        }

    @classmethod
    def open(cls, directory: str | os.PathLike, part: str = "train", shards: int | None = None) -> Pool:
        """Map the part's shards and columns.

        Args:
            shards: open only so many, the first ones: the pool as it was before it grew. None: all.

        Raises:
            DataError: no manifest, no such part, an empty part, fewer shards than asked for, or a file that is not what the
                manifest says.
        """
        manifest = Manifest.read(directory)
        if part not in manifest.parts:
            raise DataError(f"{directory} has no part {part!r}, only {sorted(manifest.parts)}")
        expected = manifest.parts[part]["shards"]
        if shards is not None and not 0 < shards <= len(expected):
            raise DataError(f"{directory}/{part} has {len(expected)} shards; {shards} were asked for: it is other data")
        expected = expected[:shards]
        readers = [IndexedReader(shard_prefix(directory, part, i)) for i in range(len(expected))]
        if [len(r) for r in readers] != expected:
            raise DataError(f"{directory}/{part}: shards of {[len(r) for r in readers]} samples, the manifest says {expected}")
        if sum(expected) == 0:
            raise DataError(f"{directory}/{part} holds no sample; prepare more data (or a larger heldout_fraction)")
        columns = {a.name: _read_columns(directory, part, a, expected) for a in manifest.attributes}
        pool = cls(manifest, part, readers, columns)
        _check_lengths(f"{directory}/{part}", readers, manifest.seq_length)
        return pool

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(self._schemas)

    def _known(self, attribute: str) -> str:
        if attribute not in self._schemas:
            raise DataError(f"no attribute {attribute!r} in the pool; it has {sorted(self._schemas)}")
        return attribute

    def codes(self, attribute: str) -> ShardedColumn:
        """Label codes, a column of uint16 [n]."""
        return self._codes[self._known(attribute)]

    def labels(self, attribute: str) -> tuple[str, ...]:
        """Names of the codes 0, 1, ..."""
        return self._schemas[self._known(attribute)].labels

    def values(self, attribute: str) -> ShardedColumn:
        """Continuous value, a column of float32 [n]. Raises DataError if the attribute has none."""
        if self._known(attribute) not in self._values:
            raise DataError(
                f"attribute {attribute!r} has labels only, no continuous value; those with one: {sorted(self._values)}"
            )
        return self._values[attribute]

    def attribute_fingerprint(self, attribute: str) -> str:
        """Hash of an attribute's columns over the shards that are open."""
        return self.manifest.attribute_fingerprint(self.part, self._known(attribute), len(self.shards))

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
        sizes, first = np.array(self.shards, dtype=np.int64), self.ids.first
        known = (shards >= 0) & (shards < len(sizes))
        known[known] = rows[known] < sizes[shards[known]]
        if not known.all():
            raise DataError(
                f"{int((~known).sum())} of {len(ids)} sample ids are not in the pool of {len(self)} samples, "
                f"the first is {int(ids[np.argmin(known)])}: they belong to other data"
            )
        return first[shards] + rows

    def tokens(self, positions: np.ndarray) -> list[np.ndarray]:
        """Token ids of the samples at `positions`: read-only views of the files, uint16 or int32 [length of the sample]."""
        return self.token_shards.tokens(self._checked(positions))

    def _checked(self, positions: np.ndarray) -> np.ndarray:
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and not (0 <= positions.min() and positions.max() < len(self)):
            raise DataError(f"positions from {positions.min()} to {positions.max()} in a pool of {len(self)} samples")
        return positions


def _read_columns(directory: str | os.PathLike, part: str, schema: AttributeSchema, sizes: list[int]) -> list[AttributeColumn]:
    columns = [read_column(attribute_path(directory, part, schema.folder, i), size) for i, size in enumerate(sizes)]
    for i, column in enumerate(columns):
        # Labels are only ever added at the end, so the codes of older shards keep their meaning.
        if column.schema.labels != schema.labels[: len(column.schema.labels)] or column.schema.continuous != schema.continuous:
            raise DataError(f"{directory}/{part}: labels of {schema.name!r} in shard {i} are not the manifest's; label it again")
    return columns


def _check_lengths(where: str, readers: list[IndexedReader], seq_length: int) -> None:
    shortest = min(int(r.lengths.min()) for r in readers if len(r))
    longest = max(int(r.lengths.max()) for r in readers if len(r))
    if longest > seq_length or shortest < 1:
        raise DataError(
            f"{where}: samples of {shortest} to {longest} tokens; the manifest says 1 to {seq_length}; prepare the data again"
        )
