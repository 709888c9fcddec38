"""The decision: a pure function of (seed, round, scores sorted by sample id, theta, use counts). NumPy only, no communication.

Nothing depends on where a sample stands: equal keys are ordered by a hash of (seed, round, id), and all noise is counter-based.
A decision covers its budget with the fewest samples of its order (the last one may exceed it), then puts what it chose into hash
order, so that training order is not score order. `decide` sorts everything and is the reference for mads.console.threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mads.console.order import MOST_USES, Draw, Order, tie_hash, words_of
from mads.noise import hash64, uniform

UNBOUNDED = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Candidates:
    """The pool as the console sees it.

    ids: int64 [n], strictly ascending
    lengths: int [n], tokens, at least 1
    uses: int [n], how often each sample was trained on
    """

    ids: np.ndarray
    lengths: np.ndarray
    uses: np.ndarray

    def __post_init__(self):
        n = len(self.ids)
        if n == 0:
            raise ValueError("there are no candidates: the pool holds no sample")
        if len(self.lengths) != n or len(self.uses) != n:
            raise ValueError(f"{n} ids, {len(self.lengths)} lengths and {len(self.uses)} use counts must be equally many")
        if (np.diff(self.ids) <= 0).any():
            raise ValueError("candidate ids must be strictly ascending")
        if self.lengths.min() < 1 or self.uses.min() < 0 or self.uses.max() > MOST_USES:
            raise ValueError(
                f"lengths must be at least 1 and use counts in 0..{MOST_USES}, got {self.lengths.min()} and "
                f"{self.uses.min()}..{self.uses.max()}"
            )


@dataclass(frozen=True)
class Strata:
    """Every cell gets its share of the budget.

    cells: how many there are; name: of a cell, for notes
    shares: "natural" (of the tokens that may be chosen), "uniform" (over cells that hold any), or float64 [cells]
    tilt: float64 [cells], factors of the shares; None: none. floor: least part of its untilted share that a cell keeps
    """

    cells: int
    name: Callable[[int], str]
    shares: str | np.ndarray
    tilt: np.ndarray | None = None
    floor: float = 0.0

    def resolved(self, held: np.ndarray) -> np.ndarray:
        """Shares with sum 1, float64 [cells], from the tokens that each cell holds. Raises ValueError if no cell has one."""
        shares = {"natural": held, "uniform": held > 0}[self.shares] if isinstance(self.shares, str) else self.shares
        shares = np.asarray(shares, dtype=np.float64)
        if shares.shape != (self.cells,) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
            raise ValueError(
                f"{self.cells} labels need as many shares that are not negative and not all 0, got {shares.tolist()}"
            )
        if not held[shares > 0].any():
            raise ValueError("no candidate has a label with a positive share")
        shares = shares / shares.sum()
        if self.tilt is None:
            return shares
        tilted = shares * self.tilt
        return (1 - self.floor) * tilted / tilted.sum() + self.floor * shares

    def notes(self, budget: int, held: np.ndarray) -> list[str]:
        """Cells that hold less than their quota."""
        asked = self.resolved(held) * budget
        return _listed(
            [
                f"label {self.name(int(j))!r} ran short: {held[j]} tokens for a quota of {int(asked[j])}; the others got the rest"
                for j in np.flatnonzero(held < np.floor(asked))
            ]
        )


@dataclass(frozen=True)
class Bounds:
    """Least and greatest share of the budget that each label may hold, float64 [L] each, 0 <= least <= most <= 1.

    Exactly: each label takes its first samples until its minimum is covered; the rest of the budget goes to the first of the
    remaining samples whose label is not at its maximum. A label passes a bound by less than one sample.
    """

    labels: Sequence[str]
    least: np.ndarray
    most: np.ndarray

    @property
    def cells(self) -> int:
        return len(self.labels)

    def tokens(self, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """(least, most) in tokens, int64 [L]. A label without a maximum may hold everything."""
        least, most = (np.ceil(np.asarray(share) * budget).astype(np.int64) for share in (self.least, self.most))
        return least, np.where(np.asarray(self.most) >= 1, UNBOUNDED, most)

    def notes(self, budget: int, held: np.ndarray) -> list[str]:
        """Labels that hold less than their minimum."""
        least, _ = self.tokens(budget)
        return _listed(
            [
                f"label {self.labels[j]!r} ran short: {held[j]} tokens for a minimum of {least[j]}"
                for j in np.flatnonzero(held < least)
            ]
        )


def _listed(notes: list[str], most: int = 20) -> list[str]:
    return notes if len(notes) <= most else [*notes[:most], f"{len(notes) - most} more labels ran short"]


@dataclass(frozen=True)
class Plan:
    """What a decision is asked for.

    budget: tokens to cover, or samples if `by_count`
    split: how the labels share the budget; None: they do not matter
    max_uses: samples that were used so often are not eligible
    """

    order: Order
    draw: Draw
    budget: int
    split: Strata | Bounds | None = None
    max_uses: int | None = None
    by_count: bool = False

    def __post_init__(self):
        if self.budget <= 0:
            raise ValueError(f"the token budget is {self.budget}; a decision must cover at least one token")

    def weights(self, lengths: np.ndarray) -> np.ndarray:
        """What each sample covers of the budget, int64 [n]."""
        return np.ones(len(lengths), np.int64) if self.by_count else lengths.astype(np.int64)


@dataclass(frozen=True)
class Decision:
    """positions: int64 [k], places in the pool in training order; tokens: their sum of lengths; reused: chosen samples with
    uses > 0; notes: whatever was not as asked."""

    ids: np.ndarray
    positions: np.ndarray
    tokens: int
    reused: int
    notes: tuple[str, ...]


def decide(plan: Plan, candidates: Candidates, total: np.ndarray | None = None, cells: np.ndarray | None = None) -> Decision:
    """Sort everything and take the first.

    Args:
        total: float64 [n], S of Eq. 6; None if the order is not scored.
        cells: int [n], the label that `plan.split` speaks of.

    Raises:
        ValueError: nothing is eligible, or no cell has a share.
    """
    eligible = np.ones(len(candidates.ids), bool) if plan.max_uses is None else candidates.uses < plan.max_uses
    rows = np.flatnonzero(eligible)
    check_eligible(len(rows), len(eligible), plan.max_uses)
    bounds = (0.0, 0.0) if total is None else (total.min(), total.max())
    words = words_of(plan.order, plan.draw, candidates.ids, candidates.uses, total, bounds)[rows]
    ties, weights = tie_hash(plan.draw, candidates.ids[rows]), plan.weights(candidates.lengths[rows])
    notes: list[str] = []
    if plan.split is None:
        chosen = cover(words, ties, weights, plan.budget)
    else:
        cells = cells[rows]
        held = np.bincount(cells, weights=weights, minlength=plan.split.cells).astype(np.int64)
        notes = plan.split.notes(plan.budget, held)
        if isinstance(plan.split, Strata):
            shares = plan.split.resolved(held)
            inside = np.flatnonzero(shares[cells] > 0)
            arrays = (array[inside] for array in (cells, words, ties, weights))
            chosen = inside[systematic(plan, shares, *arrays, np.zeros(len(shares), np.int64))]
        else:
            chosen = _within_bounds(plan, cells, words, ties, weights)
    chosen = rows[chosen]
    columns = (column[chosen] for column in (candidates.ids, candidates.lengths, candidates.uses))
    return settle(plan, chosen, *columns, notes, left_out=len(eligible) - len(rows))


def _within_bounds(plan: Plan, cells: np.ndarray, words: np.ndarray, ties: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Indices: first what the minima ask for, then the first samples of labels that are not at their maximum."""
    order, before = tokens_before(cells, words, ties, weights, np.zeros(plan.split.cells, np.int64))
    least, most = (bound[cells[order]] for bound in plan.split.tokens(plan.budget))
    must, may = order[before < least], order[(before >= least) & (before < most)]
    rest = plan.budget - int(weights[must].sum())
    return np.concatenate([must, may[cover(words[may], ties[may], weights[may], rest)]])


# ---------------------------------------------------------------- shared with the threshold search


def combine(scores: Sequence[np.ndarray], theta: np.ndarray, total: np.ndarray | None = None) -> np.ndarray:
    """Eq. 6: sum_A theta_A * scores[A], float64 [n], added in the agents' order element by element. A matrix product might add in
    another order for another shape, and split ties.

    Args:
        total: float64 [n], what the agents before these gave; changed in place. None: nothing.
    """
    if len(theta) != len(scores):
        raise ValueError(f"theta has {len(theta)} weights for {len(scores)} agents")
    total = np.zeros(len(scores[0])) if total is None else total
    for weight, row in zip(theta, scores):
        total += weight * row
    return total


def check_eligible(eligible: int, candidates: int, max_uses: int | None) -> None:
    """Raises ValueError when there is no sample to choose from."""
    if candidates == 0:
        raise ValueError("there are no candidates: the pool holds no sample")
    if eligible == 0:
        raise ValueError(
            f"no sample is eligible: all {candidates} were trained on selection.max_uses={max_uses} times or more; "
            "raise it, or add data"
        )


def cover(words: np.ndarray, ties: np.ndarray, weights: np.ndarray, budget: int) -> np.ndarray:
    """Indices of the first samples by (words, ties) whose weights sum to the budget or just over it; all, if they do not reach
    it.

    One sort by word, and a second one only among the samples that share the word at which the budget is reached.
    """
    if budget <= 0:
        return np.zeros(0, np.int64)
    order = np.argsort(words)
    covered = np.cumsum(weights[order])
    if len(order) == 0 or covered[-1] <= budget:
        return order
    last = words[order[np.searchsorted(covered, budget)]]
    first = int(np.searchsorted(words, last, side="left", sorter=order))
    end = int(np.searchsorted(words, last, side="right", sorter=order))
    sure, tied = order[:first], order[first:end]
    tied = tied[np.argsort(ties[tied])]
    missing = budget - (int(covered[first - 1]) if first else 0)
    count = np.searchsorted(np.cumsum(weights[tied]), missing) + 1
    return np.concatenate([sure, tied[:count]])


def tokens_before(
    cells: np.ndarray, words: np.ndarray, ties: np.ndarray, weights: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(order of the rows by cell, word and tie; weight of the cell's samples before each row in that order, int64 [n]).

    Args:
        start: int64 [cells], weight of each cell's samples that come before all rows.
    """
    order = np.lexsort((ties, words, cells))
    cells, weights = cells[order], weights[order]
    before = np.cumsum(weights) - weights
    first = np.searchsorted(cells, cells, side="left")  # of each row's cell
    return order, before - before[first] + start[cells]


def systematic(
    plan: Plan,
    shares: np.ndarray,
    cells: np.ndarray,
    words: np.ndarray,
    ties: np.ndarray,
    weights: np.ndarray,
    taken: np.ndarray,
) -> np.ndarray:
    """Indices that cover what `taken` (int64 [cells], of each cell's first samples) leaves of the budget.

    A sample is due at the budget at which its cell's quota reaches it: (the cell's tokens before it + u * length) / share, with
    one uniform u per cell and round, so that a cell whose quota is less than one sample gets its due on average (systematic
    sampling). What is due first is taken: cells advance together in proportion to their shares, and when one has no sample left
    the others go on in proportion: its quota is theirs.
    """
    order, before = tokens_before(cells, words, ties, weights, taken)
    due = dues(plan, shares, cells[order], weights[order], before)
    return order[cover(due, ties[order], weights[order], plan.budget - int(taken.sum()))]


def dues(plan: Plan, shares: np.ndarray, cells: np.ndarray, weights: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The budget at which each sample is due, float64 [n]; before: weight of its cell's samples that come before it."""
    u = uniform(plan.draw.seed, "decide/start", plan.draw.round, np.arange(len(shares)))
    return (before + u[cells] * weights) / shares[cells]


def settle(
    plan: Plan,
    positions: np.ndarray,
    ids: np.ndarray,
    lengths: np.ndarray,
    uses: np.ndarray,
    notes: Sequence[str] = (),
    left_out: int = 0,
) -> Decision:
    """Put the chosen samples into training order and take stock. left_out: samples that were not eligible."""
    order = np.argsort(hash64(plan.draw.seed, "decide/order", plan.draw.round, ids))
    return stock_taken(plan, positions[order], ids[order], lengths[order], uses[order], notes, left_out)


def stock_taken(plan: Plan, positions, ids, lengths, uses, notes: Sequence[str], left_out: int) -> Decision:
    """The decision for samples that are in training order."""
    notes, tokens = list(notes), int(lengths.sum(dtype=np.int64))
    covered, unit = (len(ids), "samples") if plan.by_count else (tokens, "tokens")
    if covered < plan.budget:
        used = f"; {left_out} that were used {plan.max_uses} times or more are left out" if left_out else ""
        notes.append(
            f"running short: {len(ids)} samples with {tokens} tokens for a budget of {plan.budget} {unit}; every eligible one is "
            f"chosen{used}"
        )
    reused = int((uses > 0).sum())
    if reused:
        notes.append(f"{reused} of {len(ids)} chosen samples were trained on before")
    return Decision(ids, positions.astype(np.int64), tokens, reused, tuple(notes))
