"""A pool of attributes in memory, and a topology of one rank, for tests of agents and console."""

from __future__ import annotations

import numpy as np


class FakePool:
    """AttributeView with what the console needs of mads.data.pool.Pool. columns: attribute -> (codes, labels); values: attribute
    -> float32."""

    def __init__(self, ids, lengths, columns, values=None):
        self.ids, self.lengths, self._columns = np.asarray(ids, np.int64), np.asarray(lengths, np.int32), columns
        self._values = values or {}
        self.attributes = tuple(columns)

    def __len__(self):
        return len(self.ids)

    def codes(self, attribute):
        return self._columns[attribute][0]

    def labels(self, attribute):
        return self._columns[attribute][1]

    def view(self, positions):
        columns = {name: (codes[positions], labels) for name, (codes, labels) in self._columns.items()}
        values = {name: column[positions] for name, column in self._values.items()}
        return FakePool(self.ids[positions], self.lengths[positions], columns, values)

    def values(self, attribute):
        return self._values[attribute]

    def positions_of(self, ids):
        return np.searchsorted(self.ids, ids)

    def slice_bounds(self, rank, count):
        return rank * len(self) // count, (rank + 1) * len(self) // count


def random_pool(n=400, seed=0, sizes=(("quality", 5), ("domain", 7), ("topic", 13))):
    """A pool with gaps in its ids, uneven labels and lengths from 4 to 128."""
    rng = np.random.default_rng(seed)
    columns = {}
    for name, count in sizes:
        shares = rng.dirichlet(np.full(count, 2.0))
        codes = rng.choice(count, size=n, p=shares).astype(np.uint16)
        codes[:count] = np.arange(count)  # no label is empty
        columns[name] = (codes, tuple(f"{name}{j}" for j in range(count)))
    ids = np.sort(rng.choice(10 * n, size=n, replace=False)) + (np.int64(3) << 40)
    return FakePool(ids, rng.integers(4, 129, size=n), columns)


class OneRank:
    """What mads.topology.Topology offers, for one process without a process group."""

    rank, world_size, replica_leaders, is_replica_leader = 0, 1, [0], True

    def group(self, name):
        return None

    def size(self, axis):
        return 1

    def coordinate(self, axis):
        return 0
