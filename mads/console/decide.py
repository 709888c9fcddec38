"""The decision: a pure function of (seed, round, scores sorted by sample id, theta, use counts). NumPy only, no communication.

Nothing depends on where a sample stands: equal keys are ordered by a hash of (seed, round, id), and all noise is counter-based.
Every selector covers the token budget with the fewest samples of its order (the last one may exceed it), then puts what it chose
into hash order, so that training order is not score order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mads.console.order import Draw, GumbelOrder, Order, RandomOrder, TopKOrder
from mads.noise import hash64, uniform


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
        if self.lengths.min() < 1 or self.uses.min() < 0:
            raise ValueError(
                f"lengths must be at least 1 and use counts at least 0, got {self.lengths.min()} and {self.uses.min()}"
            )


@dataclass(frozen=True)
class Decision:
    """positions: int64 [k], places in the pool in training order; tokens: their sum of lengths; reused: chosen samples with
    uses > 0; notes: whatever was not as asked."""

    ids: np.ndarray
    positions: np.ndarray
    tokens: int
    reused: int
    notes: tuple[str, ...]


def select_random(candidates: Candidates, seed: int, round_: int, budget: int) -> Decision:
    """A uniformly random subset; samples with fewer uses come first. The order is that of `select_gumbel` with equal scores."""
    return _select(RandomOrder(), candidates, None, seed, round_, budget)


def select_top_k(
    candidates: Candidates,
    scores: np.ndarray,
    theta: np.ndarray,
    names: Sequence[str],
    use_decay: float,
    seed: int,
    round_: int,
    budget: int,
) -> Decision:
    """The best by S = sum_A theta_A score_A (Eq. 6), mapped to [0, 1] and divided by 1 + use_decay * uses.

    Dividing a negative score would raise it, so the map comes first. If all scores are equal they map to 1.

    Args:
        scores: float64 [A, n]; names: the A agents' names.
    """
    check_scores(scores, len(candidates.ids), names)
    return _select(TopKOrder(use_decay), candidates, combine(scores, theta), seed, round_, budget)


def select_gumbel(
    candidates: Candidates,
    scores: np.ndarray,
    theta: np.ndarray,
    names: Sequence[str],
    temperature: float,
    seed: int,
    round_: int,
    budget: int,
) -> Decision:
    """Sampling without replacement in proportion to exp(S / temperature), S as in Eq. 6. Samples with fewer uses come first.

    The agents' scores are shrunk rewards in standard deviations of one round's rewards, so they are on one scale as they are.
    Standardising them again would undo the shrinkage: labels that differ by noise alone would be preferred as strongly as others.

    Args:
        scores: float64 [A, n]; names: the A agents' names.
    """
    check_scores(scores, len(candidates.ids), names)
    return _select(GumbelOrder(temperature), candidates, combine(scores, theta), seed, round_, budget)


def select_stratified(
    candidates: Candidates, codes: np.ndarray, labels: Sequence[str], shares: np.ndarray, seed: int, round_: int, budget: int
) -> Decision:
    """Each label's share of the tokens, random inside a label, samples with fewer uses first.

    A sample's key is the budget at which its label's quota reaches it: (label's tokens before it + u * length) / share, with one
    uniform u per label and round, so that a label whose quota is less than one sample gets its due on average (systematic
    sampling). The smallest keys are taken: labels advance together in proportion to their shares, and when one has no sample
    left the others go on in proportion: its quota is theirs.

    Args:
        codes: int [n]; shares: float64 [L], not negative, scaled to sum 1 here. Labels with share 0 are not chosen.
    """
    checked_budget(budget)
    shares = np.asarray(shares, dtype=np.float64)
    if len(shares) != len(labels) or not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        raise ValueError(f"{len(labels)} labels need as many shares that are not negative and not all 0, got {shares.tolist()}")
    shares = shares / shares.sum()
    lengths = candidates.lengths.astype(np.int64)
    order = np.argsort(hash64(seed, "decide/noise", round_, candidates.ids))
    for key in (candidates.uses, codes):  # as lexsort, but stable sorts of 16-bit integers are radix sorts
        order = order[np.argsort(key[order], kind="stable")]
    held = np.bincount(codes, weights=lengths, minlength=len(labels))
    so_far = np.cumsum(lengths[order])
    sizes = np.bincount(codes, minlength=len(labels))
    before_label = np.repeat(np.concatenate([[0], np.cumsum(held)[:-1]]), sizes)
    start = uniform(seed, "decide/start", round_, np.arange(len(labels)))
    reached = so_far - before_label - (1 - np.repeat(start, sizes)) * lengths[order]
    key = np.empty(len(order))
    with np.errstate(divide="ignore"):
        key[order] = reached / np.repeat(shares, sizes)
    asked = shares * budget
    short = np.flatnonzero(held < np.floor(asked))
    notes = [
        f"label {labels[j]!r} ran short: {int(held[j])} tokens for a quota of {int(asked[j])}; the others got the rest"
        for j in short[:20]
    ]
    if len(short) > 20:
        notes.append(f"{len(short) - 20} more labels ran short")
    eligible = np.flatnonzero(np.isfinite(key))
    if len(eligible) == 0:
        raise ValueError("no candidate has a label with a positive share")
    ties = tie_hash(seed, round_, candidates.ids)
    chosen = eligible[cover(key[eligible], ties[eligible], lengths[eligible], budget)]
    return settle(candidates, chosen, seed, round_, budget, notes)


def check_scores(scores: np.ndarray, candidates: int, names: Sequence[str]) -> None:
    """Raises ValueError when scores are not float64 [A, n] or not finite, with the agent and the count."""
    if scores.shape != (len(names), candidates) or scores.dtype != np.float64:
        raise ValueError(
            f"scores must be float64 {(len(names), candidates)} for the agents {list(names)}, got {scores.dtype} {scores.shape}"
        )
    for name, row in zip(names, scores):
        bad = int(len(row) - np.isfinite(row).sum())
        if bad:
            raise ValueError(f"agent {name!r} gave {bad} of {len(row)} samples a score that is NaN or infinite")


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


# ---------------------------------------------------------------- shared by all selectors


def _select(order: Order, candidates: Candidates, total: np.ndarray | None, seed: int, round_: int, budget: int) -> Decision:
    bounds = (0.0, 0.0) if total is None else (total.min(), total.max())
    key = order.key(Draw(seed, round_), candidates.ids, candidates.uses, total, bounds)
    level = candidates.uses if order.fewer_uses_first else None
    chosen = _best(candidates, key, level, seed, round_, budget)
    return settle(candidates, chosen, seed, round_, budget)


def checked_budget(budget: int) -> int:
    """Raises ValueError unless there is at least one token to cover."""
    if budget <= 0:
        raise ValueError(f"the token budget is {budget}; a decision must cover at least one token")
    return budget


def _best(candidates: Candidates, key: np.ndarray, level: np.ndarray | None, seed: int, round_: int, budget: int) -> np.ndarray:
    """Positions (in no order) of the first samples by (level, key, hash), all ascending, that cover the budget."""
    ties = tie_hash(seed, round_, candidates.ids)
    remaining = checked_budget(budget)
    if level is None:
        return cover(key, ties, candidates.lengths, remaining)
    taken = []
    for value in np.unique(level):
        of_level = np.flatnonzero(level == value)
        chosen = of_level[cover(key[of_level], ties[of_level], candidates.lengths[of_level], remaining)]
        taken.append(chosen)
        remaining -= int(candidates.lengths[chosen].sum(dtype=np.int64))
        if remaining <= 0:
            break
    return np.concatenate(taken)


def tie_hash(seed: int, round_: int, ids: np.ndarray) -> np.ndarray:
    """uint64 [n]: the order of samples with equal keys. Different ids never share one, because the hash is a bijection."""
    return hash64(seed, "decide/ties", round_, ids)


def cover(key: np.ndarray, ties: np.ndarray, lengths: np.ndarray, budget: int) -> np.ndarray:
    """Indices of the first samples by (key, ties) whose lengths sum to the budget or just over it; all, if they do not reach it.

    One sort by key, and a second one only among the samples that share the key at which the budget is reached.
    """
    order = np.argsort(key)
    covered = np.cumsum(lengths[order], dtype=np.int64)
    if covered[-1] <= budget:
        return order
    last = key[order[np.searchsorted(covered, budget)]]
    first = int(np.searchsorted(key, last, side="left", sorter=order))
    end = int(np.searchsorted(key, last, side="right", sorter=order))
    sure, tied = order[:first], order[first:end]
    tied = tied[np.argsort(ties[tied])]
    missing = budget - (int(covered[first - 1]) if first else 0)
    count = np.searchsorted(np.cumsum(lengths[tied], dtype=np.int64), missing) + 1
    return np.concatenate([sure, tied[:count]])


def settle(
    candidates: Candidates, chosen: np.ndarray, seed: int, round_: int, budget: int, notes: Sequence[str] = ()
) -> Decision:
    """Put the chosen positions into training order and take stock."""
    notes = list(notes)
    chosen = chosen[np.argsort(hash64(seed, "decide/order", round_, candidates.ids[chosen]))].astype(np.int64)
    tokens = int(candidates.lengths[chosen].sum(dtype=np.int64))
    if tokens < budget:
        notes.append(
            f"running short: {len(chosen)} samples with {tokens} tokens for a budget of {budget}; every eligible one is chosen"
        )
    reused = int((candidates.uses[chosen] > 0).sum())
    if reused:
        notes.append(f"{reused} of {len(chosen)} chosen samples were trained on before")
    return Decision(candidates.ids[chosen], chosen, tokens, reused, tuple(notes))
