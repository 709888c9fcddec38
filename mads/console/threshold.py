"""Decisions from pools too big to gather or to sort: an exact search for the places where token budgets are reached.

Samples are ordered as in mads.console.decide, by (word, tie hash). A *frontier* asks, for every cell (label) at once, where the
first samples that cover a number of tokens end. One pass over each rank's slice sums tokens per cell; a few more sum tokens per
bucket of the next bits of the word, then of the hash (a radix selection), all-reduced, until the buckets that hold the ends
have few samples together; the last pass collects what is surely chosen and what is still open, and rank 0 settles the open part
with the functions that the full sort uses. Memory is bounded by the piece, the winners and the open part.

    no split   one frontier at the budget
    Strata     two frontiers around each cell's quota; between them the order of the dues decides
    Bounds     two frontiers per label, its minimum and its maximum, made exact; then one over the samples between them
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mads.collectives import all_reduce_, broadcast_array, gather_to_first, group_rank, ragged_all_gather
from mads.console.decide import (
    Decision,
    Plan,
    Strata,
    check_eligible,
    cover,
    settle,
    systematic,
    tokens_before,
)
from mads.console.exchange import raise_in_group
from mads.console.order import KEY_BITS, MOST_USES, tie_hash, words_of
from mads.console.slices import Cells, PoolSlice, SliceScores

TABLE_BITS = 17  # buckets of all cells together, per pass
NOTHING, EVERYTHING = -1, (1 << 63) - 1  # marks of cells whose frontier lies before or behind all samples


def select_by_threshold(
    plan: Plan,
    pool: PoolSlice,
    cells: Cells | None = None,
    scores: SliceScores | None = None,
    group=None,
    piece: int = 1 << 18,
    gather_limit: int | None = None,
    alive: Callable[[str], None] = lambda line: None,
) -> Decision | None:
    """Collective: the decision that `decide` takes on the joined slices, equal in every field; on rank 0, None elsewhere.

    Args:
        pool: this rank's slice, possibly empty; slices follow each other in rank order.
        cells: of the same samples, if the plan has a split; scores: if its order is scored.
        group: of CPU collectives; None is this rank alone.
        piece: samples read at a time.
        gather_limit: samples, on all ranks together, whose place may be settled on rank 0, which sorts them; None: so many that
            sorting them takes no longer than another pass over the slices would (`settled_on_rank_0`).
        alive: called with a line of text while a slice is read.

    Raises:
        ValueError: on all ranks, for a pool without eligible samples, ids that do not ascend, lengths or use counts out of range,
            or scores that are not finite, with their number on all ranks.
        RankFailedError: on ranks that could read their slice when another one could not.
    """
    if piece < 1 or (gather_limit is not None and gather_limit < 1):
        raise ValueError(f"piece={piece} and gather_limit={gather_limit} must be at least 1")
    if plan.order.scored != (scores is not None) or (plan.split is None) != (cells is None):
        raise ValueError(
            f"{type(plan.order).__name__} needs scores: {plan.order.scored}, the plan needs cells: {plan.split is not None}; "
            f"given: {scores is not None}, {cells is not None}"
        )
    search = Search(plan, pool, cells, scores, group, piece, gather_limit, alive)
    search.survey()
    if plan.split is None:
        return search.plain()
    return search.stratified() if isinstance(plan.split, Strata) else search.bounded()


@dataclass
class _Frontier:
    """Per cell, where the first samples that cover `target` tokens end: in the bucket of samples whose word (and tie) begins
    with the bits known so far. The last row is of samples that take no part.

    before: tokens of the cell's samples ordered before the bucket; count: samples in it; all int64 [cells + 1]
    word: int64, known bits of the word, or a mark; tie: uint64, known bits of the hash
    """

    target: np.ndarray
    before: np.ndarray
    count: np.ndarray
    word: np.ndarray
    tie: np.ndarray
    free_word: int
    free_tie: int = 64

    @classmethod
    def start(cls, target: np.ndarray, held: np.ndarray, counts: np.ndarray, free_word: int) -> _Frontier:
        """Nothing known. held, counts: int64 [cells], tokens and samples of each cell."""
        target, held, counts = (np.append(a, 0).astype(np.int64) for a in (target, held, counts))
        none, whole = target <= 0, (target >= held) & (target > 0)
        word = np.where(none, NOTHING, np.where(whole, EVERYTHING, 0))
        before, count = np.where(whole, held, 0), np.where(none | whole, 0, counts)
        return cls(target, before, count, word, np.zeros(len(target), np.uint64), free_word)

    def split(self, words: np.ndarray, cells, ties: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """bool [n] which samples lie before their cell's bucket, bool [n] which lie in it. ties: rows -> their hashes."""
        heads, marks = words >> np.int64(self.free_word), self.word[cells]
        before, at = heads < marks, heads == marks
        if self.free_tie < 64:
            tied = np.flatnonzero(at)
            heads, marks = ties(tied) >> np.uint64(self.free_tie), self.tie[_at(cells, tied)]
            before[tied], at[tied] = heads < marks, heads == marks
        return before, at

    def inside(self, *sample) -> np.ndarray:
        """bool [n]: before the end, the bucket's samples included."""
        before, at = self.split(*sample)
        return before | at

    def narrow(self, tokens: np.ndarray, counts: np.ndarray, bits: int) -> None:
        """Go on to the bucket, of those that the next `bits` bits tell apart, in which the target is reached. int64 [cells + 1,
        2**bits]"""
        covered = self.before[:, None] + np.cumsum(tokens, axis=1)
        digit = np.minimum((covered < self.target[:, None]).sum(1), tokens.shape[1] - 1)
        rows = np.flatnonzero(self.count)
        digit = digit[rows]
        self.before[rows] = covered[rows, digit] - tokens[rows, digit]
        self.count[rows] = counts[rows, digit]
        if self.free_word:
            self.word[rows] = (self.word[rows] << np.int64(bits)) | digit
            self.free_word -= bits
        else:
            self.tie[rows] = (self.tie[rows] << np.uint64(bits)) | digit.astype(np.uint64)
            self.free_tie -= bits

    def digits(self, words: np.ndarray, ties: np.ndarray, bits: int) -> np.ndarray:
        """The next `bits` bits of samples in the bucket, int64 [n]."""
        if self.free_word:
            return (words >> np.int64(self.free_word - bits)) & np.int64((1 << bits) - 1)
        return ((ties >> np.uint64(self.free_tie - bits)) & np.uint64((1 << bits) - 1)).view(np.int64)


def _at(cells, rows: np.ndarray):
    """Cells of some rows; a pool without a split has the one cell 0 for all."""
    return cells if np.ndim(cells) == 0 else cells[rows]


class _Piece:
    """What is read of one piece; hashes are computed for the rows that need them."""

    def __init__(self, search: Search, where: slice):
        self.where, self._draw = where, search.plan.draw
        self.ids, self.lengths, self.uses = (c[where] for c in (search.pool.ids, search.pool.lengths, search.pool.uses))
        self.weights = search.weights_of(self.lengths)
        self.cells = search.cells_of(where, self.uses)
        total = None if search.scores is None else search.scores.total(where)
        self.words = words_of(search.plan.order, self._draw, self.ids, self.uses, total, search.bounds)

    def ties(self, rows: np.ndarray) -> np.ndarray:
        return tie_hash(self._draw, self.ids[rows])


@dataclass(frozen=True)
class _Rows:
    """Samples on rank 0: positions, ids, lengths int64, uses uint16; cells, words int64 of those whose place is open."""

    positions: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    uses: np.ndarray
    cells: np.ndarray
    words: np.ndarray


class Search:
    """One decision. `survey` comes first."""

    def __init__(self, plan, pool, cells, scores, group, piece, gather_limit, alive):
        self.plan, self.pool, self.scores, self.group = plan, pool, scores, group
        self._cells, self._piece, self._limit, self._alive = cells, piece, gather_limit, alive
        self._count = 1 if plan.split is None else plan.split.cells
        self._compact: np.ndarray | None = None  # cell -> its place among those that take part
        self.bounds = (0.0, 0.0)

    def cells_of(self, where: slice, uses: np.ndarray):
        """Cell of each sample, int64 [n]; the cell after the last one for samples that take no part; 0 if all are in the only
        one."""
        cells = 0 if self._cells is None else self._cells[where]
        if self.plan.max_uses is not None:
            cells = np.where(uses < self.plan.max_uses, cells, self._count)
        return cells if self._compact is None else self._compact[cells]

    def weights_of(self, lengths: np.ndarray) -> np.ndarray:
        """What each sample of a piece covers, in the column's own type: sums turn it into int64 at once."""
        return np.ones(len(lengths), np.int32) if self.plan.by_count else lengths

    # ------------------------------------------------------------ passes

    def survey(self) -> None:
        """Pass over everything that does not need the words, with all checks: a bad value on one rank is raised on all."""
        agents = [] if self.scores is None else [agent.name for agent in self.scores.agents]
        wrong = np.zeros(3 + len(agents), dtype=np.int64)
        counts, tokens = np.zeros((2, self._count + 1), dtype=np.int64)
        most = np.array([-np.inf, -np.inf, 0, 0])  # of -S, S, uses, weights

        def look(where: slice) -> None:
            ids, lengths, uses = self.pool.ids[where], self.pool.lengths[where], self.pool.uses[where]
            before = self.pool.ids[slice(max(0, where.start - 1), where.start)]
            wrong[0] += (ids[1:] <= ids[:-1]).sum() + (before >= ids[:1]).sum()
            wrong[1] += (lengths < 1).sum()
            if uses.min() < 0 or uses.max() > MOST_USES:
                wrong[2] += ((uses < 0) | (uses > MOST_USES)).sum()
            weights, cells = self.weights_of(lengths), self.cells_of(where, uses)
            _add(counts, tokens, cells, weights)
            most[2:] = np.maximum(most[2:], [uses.max(), weights.max()])
            if self.scores is not None:
                total, bad = self.scores.checked_total(where)
                wrong[3:] += bad
                most[:2] = np.maximum(most[:2], [-total.min(), total.max()])

        self.each("survey", look)
        sizes = np.concatenate(ragged_all_gather(np.array([len(self.pool)]), self.group))
        ends = (self.pool.ids[:1], self.pool.ids[len(self.pool) - 1 : len(self.pool)] if len(self.pool) else self.pool.ids[:0])
        first, last = (np.concatenate(ragged_all_gather(end, self.group)) for end in ends)
        wrong = self._sum(wrong)
        wrong[0] += (first[1:] <= last[:-1]).sum()
        samples = int(sizes.sum())
        _raise_wrong(wrong, samples, agents)
        counts, self._held = self._sum(counts), self._sum(tokens)[:-1]
        self._counts, self._left_out = counts[:-1], int(counts[-1])
        check_eligible(samples - self._left_out, samples, self.plan.max_uses)
        most = all_reduce_(torch.from_numpy(most), self.group, "max").numpy()
        self.bounds, self._longest = (float(-most[0]), float(most[1])), int(most[3])
        self._free = KEY_BITS + (int(most[2]).bit_length() if self.plan.order.fewer_uses_first else 0)
        self.offset = int(sizes[: group_rank(self.group)].sum())
        self._limit = self._limit or settled_on_rank_0(samples)

    def _narrow(self, frontiers: list[_Frontier], cells_of=lambda piece: piece.cells) -> None:
        """Passes that go on until the buckets hold no more samples than may be gathered."""
        while sum(int(f.count.sum()) for f in frontiers) > self._limit and frontiers[0].free_word + frontiers[0].free_tie:
            rows = len(frontiers[0].target)
            bits = max(1, min(16, frontiers[0].free_word or frontiers[0].free_tie, TABLE_BITS - (rows - 1).bit_length()))
            tables = [np.zeros((2, rows << bits), dtype=np.int64) for _ in frontiers]

            def look(where: slice, bits=bits, tables=tables) -> None:
                piece = _Piece(self, where)
                cells = cells_of(piece)
                for frontier, (counts, tokens) in zip(frontiers, tables):
                    _, at = frontier.split(piece.words, cells, piece.ties)
                    open_ = np.flatnonzero(at)
                    ties = piece.ties(open_) if not frontier.free_word else None
                    buckets = frontier.digits(piece.words[open_], ties, bits) + (_at(cells, open_) << bits)
                    _add(counts, tokens, buckets, piece.weights[open_])

            self.each("narrowing", look)
            for frontier, table in zip(frontiers, tables):
                counts, tokens = self._sum(table).reshape(2, rows, -1)
                frontier.narrow(tokens, counts, bits)

    def _gather(self, classify: Callable[[_Piece], tuple[np.ndarray, np.ndarray]]) -> tuple[_Rows, _Rows] | None:
        """Pass that collects on rank 0 what `classify` calls sure and what it calls open, two bool [n] of a piece."""
        kept: tuple[list, list] = ([], [])

        def look(where: slice) -> None:
            piece = _Piece(self, where)
            for rows, chosen in zip(kept, classify(piece)):
                at = np.flatnonzero(chosen)
                cells = np.broadcast_to(np.asarray(piece.cells, np.int64), len(piece.ids))[at]
                known = (self.offset + where.start + at, piece.ids[at], piece.lengths[at], piece.uses[at], cells, piece.words[at])
                rows.append(known if rows is kept[1] else known[:4])

        self.each("collecting", look)
        dtypes = (np.int64, np.int64, np.int64, np.uint16, np.int64, np.int64)
        found = []
        for rows in kept:
            columns = []
            for i, dtype in enumerate(dtypes if rows is kept[1] else dtypes[:4]):
                mine = np.concatenate([np.zeros(0, dtype), *(row[i].astype(dtype, copy=False) for row in rows)])
                columns.append(gather_to_first(mine, self.group))
            found.append(columns)
        if group_rank(self.group):
            return None
        return _Rows(*found[0], *(np.zeros(0, np.int64),) * 2), _Rows(*found[1])

    # ------------------------------------------------------------ the three kinds of decision

    def plain(self) -> Decision | None:
        """The first samples of the order."""
        end = _Frontier.start(np.array([self.plan.budget]), self._held, self._counts, self._free)
        self._narrow([end])
        rows = self._gather(lambda piece: end.split(piece.words, piece.cells, piece.ties))
        return self._settled(rows, lambda open_: self._cover(open_, self.plan.budget - int(end.before.sum())))

    def stratified(self) -> Decision | None:
        """Each cell up to where its quota ends, to within what the order of the dues may shift it."""
        split, budget = self.plan.split, self.plan.budget
        shares = split.resolved(self._held)
        present = np.flatnonzero((shares > 0) & (self._counts > 0))
        self._compact = np.full(self._count + 1, len(present))
        self._compact[present] = np.arange(len(present))
        held, share, counts = self._held[present], shares[present], self._counts[present]
        # A cell is at most one sample away from its quota at any time, so the budget is covered between these two times.
        sample = self._longest + 2 + budget * 1e-9
        early, late = (water_level(held, share, budget + sign * len(present) * sample) for sign in (-1, 1))
        whole = self._held.sum() + 1.0  # more than any cell holds
        low, high = (
            _Frontier.start(np.minimum(bound, whole), held, counts, self._free)
            for bound in (np.floor(share * early - sample), np.ceil(share * late + sample))
        )
        self._narrow([low, high])

        def classify(piece: _Piece) -> tuple[np.ndarray, np.ndarray]:
            sure, _ = low.split(piece.words, piece.cells, piece.ties)
            return sure, high.inside(piece.words, piece.cells, piece.ties) & ~sure

        def resolve(open_: _Rows) -> np.ndarray:
            taken = np.zeros(self._count, np.int64)
            taken[present] = low.before[:-1]
            weights, ties = self.plan.weights(open_.lengths), tie_hash(self.plan.draw, open_.ids)
            return systematic(self.plan, shares, present[open_.cells], open_.words, ties, weights, taken)

        return self._settled(self._gather(classify), resolve)

    def bounded(self) -> Decision | None:
        """Each label's minimum, then the first of the order that lie before their label's maximum."""
        least, most = (
            _Frontier.start(tokens, self._held, self._counts, self._free) for tokens in self.plan.split.tokens(self.plan.budget)
        )
        self._narrow([least, most])
        least, most = self._exact([least, most])
        must = int(least.before.sum())
        rest = np.array([self.plan.budget - must])
        eligible = np.array([int(self._counts.sum())])
        end = _Frontier.start(rest, np.array([int(most.before.sum()) - must]), eligible, self._free)

        def between(piece: _Piece) -> tuple[np.ndarray, np.ndarray]:
            """(in its label's minimum, cell 0 behind it and before the maximum, else 1)."""
            sample = (piece.words, piece.cells, piece.ties)
            first = least.inside(*sample)
            return first, np.where(most.inside(*sample) & ~first, 0, 1)

        self._narrow([end], lambda piece: between(piece)[1])

        def classify(piece: _Piece) -> tuple[np.ndarray, np.ndarray]:
            first, cells = between(piece)
            before, at = end.split(piece.words, cells, piece.ties)
            return first | before, at

        return self._settled(self._gather(classify), lambda open_: self._cover(open_, int(rest[0] - end.before.sum())))

    def _exact(self, frontiers: list[_Frontier]) -> list[_Frontier]:
        """The frontiers with buckets of one sample, the last that is needed to cover the target; its tokens count as before."""

        def open_for_any(piece: _Piece) -> tuple[np.ndarray, np.ndarray]:
            any_ = np.zeros(len(piece.ids), dtype=bool)
            for frontier in frontiers:
                any_ |= frontier.split(piece.words, piece.cells, piece.ties)[1]
            return np.zeros_like(any_), any_

        rows, result = self._gather(open_for_any), []
        for frontier in frontiers:
            word, tie, before = frontier.word.copy(), frontier.tie.copy(), frontier.before.copy()
            if rows is not None:
                ties, weights = tie_hash(self.plan.draw, rows[1].ids), self.plan.weights(rows[1].lengths)
                own = np.flatnonzero(frontier.split(rows[1].words, rows[1].cells, lambda at, ties=ties: ties[at])[1])
                cells, words, ties, weights = rows[1].cells[own], rows[1].words[own], ties[own], weights[own]
                order, so_far = tokens_before(cells, words, ties, weights, before)
                needed = order[so_far < frontier.target[cells[order]]]
                np.add.at(before, cells[needed], weights[needed])
                word[cells[needed]] = words[needed]  # in order, so a cell's last needed row is written last
                tie[cells[needed]] = ties[needed]
            word, tie, before = (broadcast_array(a, self.group, a.dtype) for a in (word, tie, before))
            result.append(_Frontier(frontier.target, before, np.zeros_like(before), word, tie, 0, 0))
        return result

    # ------------------------------------------------------------ rank 0

    def _cover(self, rows: _Rows, budget: int) -> np.ndarray:
        return cover(rows.words, tie_hash(self.plan.draw, rows.ids), self.plan.weights(rows.lengths), budget)

    def _settled(self, rows: tuple[_Rows, _Rows] | None, resolve: Callable[[_Rows], np.ndarray]) -> Decision | None:
        if rows is None:
            return None
        sure, open_ = rows
        chosen = resolve(open_)
        columns = (
            np.concatenate([getattr(sure, name), getattr(open_, name)[chosen]])
            for name in ("positions", "ids", "lengths", "uses")
        )
        notes = self.plan.split.notes(self.plan.budget, self._held) if self.plan.split else []
        return settle(self.plan, *columns, notes, self._left_out)

    # ------------------------------------------------------------ all ranks

    def each(self, phase: str, look: Callable[[slice], None]) -> None:
        """One pass over this rank's slice. What `look` raises on one rank is raised on all."""
        error = None
        try:
            for i, where in enumerate(self.pool.pieces(self._piece)):
                if i % 16 == 0:
                    self._alive(f"{phase}: {where.start} of {len(self.pool)} samples of this slice")
                look(where)
        except Exception as caught:  # told to the other ranks, then raised
            error = caught
        raise_in_group(error, self.group, phase)

    def _sum(self, array: np.ndarray) -> np.ndarray:
        return all_reduce_(torch.from_numpy(array.copy()), self.group).numpy()


def settled_on_rank_0(samples: int) -> int:
    """Samples of a pool that rank 0 may sort rather than all ranks read their slices again: a pass takes some 30 ns a sample, the
    sort of what is open some 500. At most 2^20, for rank 0's memory; tables of counts make fewer than 2^14 pointless."""
    return min(1 << 20, max(1 << 14, samples // 16))


def water_level(held: np.ndarray, shares: np.ndarray, amount: float) -> float:
    """The level at which cells that fill in proportion to their shares, and hold no more than `held`, hold `amount` together."""
    if amount <= 0:
        return 0.0
    if amount >= held.sum():
        return np.inf
    full = held / shares  # the level at which a cell is full
    order = np.argsort(full)
    before = np.cumsum(held[order]) - held[order]
    open_ = np.cumsum(shares[order][::-1])[::-1]
    first = int(np.argmax(before + full[order] * open_ >= amount))
    return float((amount - before[first]) / open_[first])


def _add(counts: np.ndarray, tokens: np.ndarray, buckets, weights: np.ndarray) -> None:
    """Add a piece's samples and tokens per bucket. Sums of integers below 2**53 are exact in float64."""
    if np.ndim(buckets) == 0:
        counts[buckets] += len(weights)
        tokens[buckets] += weights.sum(dtype=np.int64)
    elif len(counts) > 4 * len(weights):
        np.add.at(counts, buckets, 1)
        np.add.at(tokens, buckets, weights)
    else:
        counts += np.bincount(buckets, minlength=len(counts))
        tokens += np.bincount(buckets, weights=weights, minlength=len(counts)).astype(np.int64)


def _raise_wrong(wrong: np.ndarray, candidates: int, agents: list[str]) -> None:
    if wrong[0]:
        raise ValueError(f"candidate ids must be strictly ascending over all ranks; {wrong[0]} of {candidates} are not")
    if wrong[1] or wrong[2]:
        raise ValueError(
            f"lengths must be at least 1 and use counts in 0..{MOST_USES}; {wrong[1]} and {wrong[2]} of {candidates} are not"
        )
    for name, count in zip(agents, wrong[3:]):
        if count:
            raise ValueError(f"agent {name!r} gave {count} of {candidates} samples a score that is NaN or infinite")
