"""Losses of given samples, spread over the ranks in fixed batches, so that any number of ranks gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from mads import collectives
from mads.data.batch import PackedBatch, make_batch
from mads.data.packing import pack


class FixedBatches:
    """Samples packed once into batches of `rows` rows. The composition of a batch never depends on the number of ranks.

    Args:
        samples: token arrays, each of at most seq_length tokens.
    """

    def __init__(self, samples: Sequence[np.ndarray], seq_length: int, rows: int):
        self.samples = list(samples)
        self.seq_length = seq_length
        self.rows = rows
        self.packing = pack(np.array([len(s) for s in self.samples], dtype=np.int64), seq_length)
        self.count = -(-self.packing.rows // rows)
        self.targets = np.array([max(0, len(s) - 1) for s in self.samples], dtype=np.int64)

    def batch(self, index: int) -> tuple[PackedBatch, np.ndarray]:
        """The batch and the sample index of each of its segments."""
        rows = range(index * self.rows, min((index + 1) * self.rows, self.packing.rows))
        members = [self.packing.samples_of_row(r) for r in rows]
        batch = make_batch([[self.samples[i] for i in row] for row in members], self.seq_length)
        return batch, np.concatenate(members).astype(np.int64)

    def share_of(self, rank: int, ranks: int) -> list[int | None]:
        """Batch indices for one of `ranks` ranks; every rank gets as many entries, None where it only keeps the others company
        (under ZeRO 3 all ranks must run the same number of forward passes)."""
        turns = -(-self.count // ranks)
        return [i if (i := turn * ranks + rank) < self.count else None for turn in range(turns)]


def spread(batches: FixedBatches, values_of: Callable[[list[PackedBatch]], list[torch.Tensor]], topology) -> np.ndarray:
    """`values_of` (float64 [samples] of each batch) over all batches, each on one replica: float64 [samples], on all ranks."""
    result = np.zeros(len(batches.samples))
    share = batches.share_of(topology.coordinate("dp"), topology.size("dp"))
    taken = [batches.batch(index if index is not None else 0) for index in share]
    mine_index, mine_value = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for index, (_, members), values in zip(share, taken, values_of([batch for batch, _ in taken])):
        if index is not None and topology.is_replica_leader:
            mine_index.append(members)
            mine_value.append(values.cpu().numpy())
    index, value = np.concatenate(mine_index), np.concatenate(mine_value)
    control = topology.group("control")
    for i, v in zip(collectives.ragged_all_gather(index, control), collectives.ragged_all_gather(value, control)):
        result[i] = v
    return result


def first_rank(values: np.ndarray, topology) -> np.ndarray:
    """Rank 0's float64 values, on every rank: for numbers that follow from the same losses but may differ in their last bit."""
    return collectives.broadcast_array(values, topology.group("control"), np.float64)
