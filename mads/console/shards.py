"""Decisions by whole shards: for storage where random reads are dear. A shard is judged by the mean over its samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from mads.collectives import all_reduce_, broadcast_array, gather_to_first, group_rank
from mads.console.decide import Candidates, Decision, Plan, decide, stock_taken
from mads.console.exchange import raise_in_group
from mads.console.slices import PoolSlice, SliceScores
from mads.console.threshold import Search

ROW_BITS = 40  # of a sample id: shard << 40 | row
FINE = 2.0**32  # steps between the least and the greatest S; sums of integers do not depend on their order


@dataclass(frozen=True)
class ShardSums:
    """Sums over the samples of each shard number, int64 [shards].

    steps: of S above the least, None without scores; low, high: the least and the greatest S
    """

    samples: np.ndarray
    tokens: np.ndarray
    uses: np.ndarray
    steps: np.ndarray | None
    low: float
    high: float

    @property
    def present(self) -> np.ndarray:
        """Shard numbers that hold samples."""
        return np.flatnonzero(self.samples)

    def candidates(self, by_count: bool) -> tuple[Candidates, np.ndarray | None]:
        """(the shards that hold samples, each under the id of its first row; their mean S, float64 [n])."""
        present, total = self.present, None
        if self.steps is not None:
            total = self.low + self.steps[present] / self.samples[present] * ((self.high - self.low) / FINE)
        measure = self.samples if by_count else self.tokens
        return Candidates(present << ROW_BITS, measure[present], self.uses[present] // self.samples[present]), total


def sum_up(search: Search) -> ShardSums:
    """Collective: surveys the pool (errors of `select_by_threshold`) and sums over whole shards, the same on all ranks."""
    search.survey()
    pool, scores, (low, high) = search.pool, search.scores, search.bounds
    last = int(pool.ids[len(pool) - 1 : len(pool)][0] >> ROW_BITS) if len(pool) else -1
    count = int(all_reduce_(torch.tensor([last]), search.group, "max")[0]) + 1
    sums = np.zeros((4, count), dtype=np.int64)

    def look(where: slice) -> None:
        shards = pool.ids[where] >> ROW_BITS
        first, shards = int(shards[0]), shards - shards[0]
        rows = [np.ones(len(shards)), pool.lengths[where], pool.uses[where]]
        if scores is not None and high > low:
            rows.append(np.rint((scores.total(where) - low) * (FINE / (high - low))))
        for row, values in zip(sums, rows):
            added = np.bincount(shards, weights=values).astype(np.int64)
            row[first : first + len(added)] += added

    search.each("summing up shards", look)
    samples, tokens, uses, steps = all_reduce_(torch.from_numpy(sums), search.group).numpy()
    return ShardSums(samples, tokens, uses, None if scores is None else steps, low, high)


def select_shards(plan: Plan, pool: PoolSlice, scores: SliceScores | None, group, piece: int, alive) -> Decision | None:
    """Collective: the plan with shards in the place of samples; on rank 0, None elsewhere.

    A shard's S is the mean of its samples' (in 2**32 steps over the pool's range), its use count their mean, rounded down.
    Chosen shards come in hash order, their samples in reading order. Arguments and errors are those of `select_by_threshold`;
    the plan has no split.
    """
    search = Search(replace(plan, max_uses=None), pool, None, scores, group, piece, 1, alive)
    sums = sum_up(search)
    ordered, error, left_out = None, None, 0
    if group_rank(group) == 0:
        try:
            candidates, total = sums.candidates(plan.by_count)
            ordered = decide(replace(plan, by_count=False), candidates, total).ids >> ROW_BITS
            if plan.max_uses is not None:
                left_out = int(sums.samples[sums.present][candidates.uses >= plan.max_uses].sum())
        except Exception as caught:  # told to the other ranks, then raised
            error = caught
    raise_in_group(error, group, "choosing shards")
    ordered = broadcast_array(ordered, group, np.int64)
    place = np.full(len(sums.samples), -1)
    place[ordered] = np.arange(len(ordered))
    rows: list[tuple] = []

    def collect(where: slice) -> None:
        ids = pool.ids[where]
        at = np.flatnonzero(place[ids >> ROW_BITS] >= 0)
        rows.append((search.offset + where.start + at, ids[at], pool.lengths[where][at], pool.uses[where][at]))

    search.each("collecting", collect)
    columns = [
        gather_to_first(np.concatenate([np.zeros(0, np.int64), *(row[i].astype(np.int64) for row in rows)]), group)
        for i in range(4)
    ]
    if group_rank(group):
        return None
    positions, ids, lengths, uses = columns
    order = np.lexsort((positions, place[ids >> ROW_BITS]))
    return stock_taken(plan, positions[order], ids[order], lengths[order], uses[order], (), left_out)
