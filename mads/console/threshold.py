"""Decisions from pools too big to gather or to sort: an exact search for the key at which the token budget is reached.

The samples are ordered by (uses, key, tie hash) as in mads.console.decide. One pass over each rank's slice sums tokens per use
count; a few more sum tokens per bucket of the key, 16 bits at a time from the most significant (a radix selection), all-reduced,
until the bucket that holds the end of the budget has few samples; the last pass collects what is surely chosen and that bucket,
which is sorted. Memory is bounded by the piece, the winners and the bucket; communication by the winners and the bucket.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from mads.collectives import all_reduce_, group_rank, ragged_all_gather
from mads.console.decide import Candidates, Decision, checked_budget, cover, settle, tie_hash
from mads.console.order import Draw, Order
from mads.console.slices import PoolSlice, SliceScores

DIGIT_BITS = 16
BUCKETS = 1 << DIGIT_BITS
MOST_USES = BUCKETS - 1


@dataclass(frozen=True)
class _Word:
    """What is known of a 64-bit word: all but its last `free` bits are `prefix`."""

    prefix: int = 0
    free: int = 64

    def heads(self, words: np.ndarray) -> np.ndarray:
        return words >> np.uint64(self.free)

    def digits(self, words: np.ndarray) -> np.ndarray:
        """The next digit of each word, as int64 that bincount takes without a copy."""
        digits = words >> np.uint64(self.free - DIGIT_BITS)
        digits &= np.uint64(BUCKETS - 1)
        return digits.view(np.int64)

    def extended(self, digit: int) -> _Word:
        return _Word((self.prefix << DIGIT_BITS) | digit, self.free - DIGIT_BITS)


@dataclass(frozen=True)
class _Boundary:
    """Where the budget ends. before: tokens of all samples ordered before it; count: samples in it, on all ranks.

    level: the use count, None if it plays no part
    """

    level: int | None
    before: int
    count: int
    key: _Word = _Word()
    tie: _Word = _Word()


@dataclass(frozen=True)
class _Survey:
    """counts: samples, tokens: their lengths, both int64 [65536] per use count (all under 0 if it plays no part), on all ranks;
    offset: pool position of this rank's first sample; bounds: least and greatest S."""

    counts: np.ndarray
    tokens: np.ndarray
    offset: int
    bounds: tuple[float, float]


def select_by_threshold(
    order: Order,
    pool: PoolSlice,
    scores: SliceScores | None,
    draw: Draw,
    budget: int,
    group=None,
    piece: int = 1 << 18,
    gather_limit: int = 1 << 20,
) -> Decision:
    """Collective: the decision that the selector of `order` takes on the joined slices, equal in every field, on every rank.

    Args:
        pool: this rank's slice, possibly empty; slices follow each other in rank order.
        scores: of the same samples; None if the order is not scored.
        group: of CPU collectives; None is this rank alone.
        piece: samples read at a time. gather_limit: samples, on all ranks together, that may be gathered beside the winners.

    Raises:
        ValueError: on all ranks, for a pool without samples, ids that do not ascend, lengths or use counts out of range, codes
            without a weight or scores that are not finite, with their number on all ranks.
    """
    checked_budget(budget)
    if piece < 1 or gather_limit < 1:
        raise ValueError(f"piece={piece} and gather_limit={gather_limit} must be at least 1")
    if order.scored != (scores is not None):
        raise ValueError(f"{type(order).__name__} needs scores: {order.scored}; scores were given: {scores is not None}")
    search = _Search(order, pool, scores, draw, budget, group, piece)
    survey = search.survey()
    boundary = search.first_boundary(survey)
    while boundary is not None and boundary.count > gather_limit:
        boundary = search.narrowed(boundary, survey.bounds)
    return search.collect(boundary, survey)


@dataclass(frozen=True)
class _Search:
    order: Order
    pool: PoolSlice
    scores: SliceScores | None
    draw: Draw
    budget: int
    group: object
    piece: int

    def survey(self) -> _Survey:
        """Pass over everything that does not need the key, with all checks: a bad value on one rank is raised on all."""
        agents = [] if self.scores is None else [agent.name for agent in self.scores.agents]
        wrong = np.zeros(3 + len(agents), dtype=np.int64)
        counts, tokens = np.zeros((2, BUCKETS), dtype=np.int64)
        low, high = np.inf, -np.inf
        for where in self.pool.pieces(self.piece):
            ids, lengths, uses = self.pool.ids[where], self.pool.lengths[where], self.pool.uses[where]
            before = self.pool.ids[slice(max(0, where.start - 1), where.start)]
            wrong[0] += (ids[1:] <= ids[:-1]).sum() + (before >= ids[:1]).sum()
            wrong[1] += (lengths < 1).sum()
            if uses.min() < 0 or uses.max() > MOST_USES:
                wrong[2] += ((uses < 0) | (uses > MOST_USES)).sum()
            elif not self.order.fewer_uses_first or not uses.any():
                counts[0] += len(uses)
                tokens[0] += lengths.sum(dtype=np.int64)
            else:
                _add_counts(counts, tokens, uses, lengths)
            if self.scores is not None:
                wrong[3:] += self.scores.wrong(where)
                total = self.scores.total(where)
                low, high = min(low, total.min()), max(high, total.max())
        sizes = np.concatenate(ragged_all_gather(np.array([len(self.pool)]), self.group))
        first, last = (np.concatenate(ragged_all_gather(end, self.group)) for end in (self.pool.ids[:1], self._last_id()))
        wrong = self._sum(wrong)
        wrong[0] += (first[1:] <= last[:-1]).sum()
        _raise_wrong(wrong, int(sizes.sum()), agents)
        # The greatest of -S is the least S: one all-reduce for both.
        low, high = all_reduce_(torch.tensor([-low, high], dtype=torch.float64), self.group, "max").tolist()
        offset = int(sizes[: group_rank(self.group)].sum())
        return _Survey(self._sum(counts), self._sum(tokens), offset, (-low, high))

    def first_boundary(self, survey: _Survey) -> _Boundary | None:
        """The use count at which the budget ends, with its whole range of keys; None if the pool does not exceed the budget."""
        covered = np.cumsum(survey.tokens)
        if covered[-1] <= self.budget:
            return None
        level = int(np.searchsorted(covered, self.budget))
        before = int(covered[level] - survey.tokens[level])
        return _Boundary(level if self.order.fewer_uses_first else None, before, int(survey.counts[level]))

    def narrowed(self, boundary: _Boundary, bounds: tuple[float, float]) -> _Boundary:
        """Pass that finds the next 16 bits of the key at the boundary, or of the tie hash once the key is known."""
        on_ties = boundary.key.free == 0
        word = boundary.tie if on_ties else boundary.key
        counts, tokens = np.zeros((2, BUCKETS), dtype=np.int64)
        for where in self.pool.pieces(self.piece):
            _, at, bits = self._classified(where, boundary, bounds)
            lengths = self.pool.lengths[where]
            if not at.all():
                at = np.flatnonzero(at)
                lengths, bits = lengths[at], bits[at]
            words = self._ties(self.pool.ids[where][at]) if on_ties else bits
            _add_counts(counts, tokens, word.digits(words), lengths)
        counts, tokens = self._sum(counts), self._sum(tokens)
        covered = boundary.before + np.cumsum(tokens)
        digit = int(np.searchsorted(covered, self.budget))
        found = replace(boundary, before=int(covered[digit] - tokens[digit]), count=int(counts[digit]))
        longer = word.extended(digit)
        return replace(found, tie=longer) if on_ties else replace(found, key=longer)

    def collect(self, boundary: _Boundary | None, survey: _Survey) -> Decision:
        """Pass that takes what lies before the boundary, and from the boundary what `cover` takes."""
        sure, open_ = [], []
        for where in self.pool.pieces(self.piece):
            if boundary is None:
                sure.append(self._rows(where, survey.offset, np.arange(where.stop - where.start)))
                continue
            before, at, bits = self._classified(where, boundary, survey.bounds)
            sure.append(self._rows(where, survey.offset, np.flatnonzero(before)))
            at = np.flatnonzero(at)
            open_.append([*self._rows(where, survey.offset, at), bits[at]])
        positions, ids, lengths, uses = self._gathered(sure, (np.int64, np.int64, np.int64, np.uint16))
        if boundary is not None:
            *rows, bits = self._gathered(open_, (np.int64, np.int64, np.int64, np.uint16, np.uint64))
            chosen = cover(bits, self._ties(rows[1]), rows[2], self.budget - boundary.before)
            positions, ids, lengths, uses = (
                np.concatenate([a, b[chosen]]) for a, b in zip((positions, ids, lengths, uses), rows)
            )
        by_position = np.argsort(positions)
        winners = Candidates(ids[by_position], lengths[by_position], uses[by_position])
        decision = settle(winners, np.arange(len(by_position)), self.draw.seed, self.draw.round, self.budget)
        return replace(decision, positions=positions[by_position][decision.positions])

    # ------------------------------------------------------------ a piece

    def _classified(self, where: slice, boundary: _Boundary, bounds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """bool [n] which samples lie before the boundary, bool [n] which lie in it, uint64 [n] all their keys."""
        ids, uses = self.pool.ids[where], self.pool.uses[where]
        total = None if self.scores is None else self.scores.total(where)
        bits = ordered_bits(self.order.key(self.draw, ids, uses, total, bounds))
        if boundary.level is None:
            before, at = np.zeros(len(ids), dtype=bool), np.ones(len(ids), dtype=bool)
        else:
            before, at = uses < boundary.level, uses == boundary.level
        if boundary.key.free < 64:
            heads, prefix = boundary.key.heads(bits), np.uint64(boundary.key.prefix)
            before |= at & (heads < prefix)
            at &= heads == prefix
        if boundary.tie.free < 64:
            tied = np.flatnonzero(at)
            heads, prefix = boundary.tie.heads(self._ties(ids[tied])), np.uint64(boundary.tie.prefix)
            before[tied], at[tied] = heads < prefix, heads == prefix
        return before, at, bits

    def _last_id(self) -> np.ndarray:
        return self.pool.ids[len(self.pool) - 1 : len(self.pool)] if len(self.pool) else self.pool.ids[:0]

    def _ties(self, ids: np.ndarray) -> np.ndarray:
        return tie_hash(self.draw.seed, self.draw.round, ids)

    def _rows(self, where: slice, offset: int, chosen: np.ndarray) -> list[np.ndarray]:
        """Pool positions, ids, lengths and use counts of the samples with these places in the piece."""
        columns = (self.pool.ids, self.pool.lengths, self.pool.uses)
        return [offset + where.start + chosen, *(column[where][chosen] for column in columns)]

    # ------------------------------------------------------------ all ranks

    def _sum(self, array: np.ndarray) -> np.ndarray:
        return all_reduce_(torch.from_numpy(array.copy()), self.group).numpy()

    def _gathered(self, pieces: list[list[np.ndarray]], dtypes: tuple) -> list[np.ndarray]:
        """Column by column, this rank's pieces and then all ranks' joined."""
        result = []
        for i, dtype in enumerate(dtypes):
            mine = np.concatenate([np.zeros(0, dtype), *(piece[i].astype(dtype, copy=False) for piece in pieces)])
            result.append(np.concatenate(ragged_all_gather(mine, self.group)))
        return result


def ordered_bits(key: np.ndarray) -> np.ndarray:
    """uint64 [n] in the order of finite float64 keys; equal keys, both zeros among them, get equal bits."""
    bits = (key + 0.0).view(np.uint64)  # adding 0 turns -0 into 0
    sign = bits.view(np.int64) >> np.int64(63)  # all bits of a negative number are flipped, of others the first
    bits ^= sign.view(np.uint64) | np.uint64(1 << 63)
    return bits


def _add_counts(counts: np.ndarray, tokens: np.ndarray, buckets: np.ndarray, lengths: np.ndarray) -> None:
    """Add a piece's samples and tokens per bucket. Sums of integers below 2**53 are exact in float64."""
    counts += np.bincount(buckets, minlength=BUCKETS)
    tokens += np.bincount(buckets, weights=lengths, minlength=BUCKETS).astype(np.int64)


def _raise_wrong(wrong: np.ndarray, candidates: int, agents: list[str]) -> None:
    if candidates == 0:
        raise ValueError("there are no candidates: the pool holds no sample")
    if wrong[0]:
        raise ValueError(f"candidate ids must be strictly ascending over all ranks; {wrong[0]} of {candidates} are not")
    if wrong[1] or wrong[2]:
        raise ValueError(
            f"lengths must be at least 1 and use counts in 0..{MOST_USES}; {wrong[1]} and {wrong[2]} of {candidates} are not"
        )
    for name, count in zip(agents, wrong[3:]):
        if count:
            raise ValueError(
                f"agent {name!r} cannot score {count} of {candidates} samples: a code without a weight, or a score that is NaN "
                "or infinite"
            )
