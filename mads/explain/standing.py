"""Where a sample stood in a decision: what the agents gave, its place in the order, and what decided about it.

Whether it was taken follows here from its own numbers and those of the last sample taken, never from the decided list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mads.console.decide import Bounds, Plan, Strata, dues, tokens_before
from mads.console.order import KEY_BITS, GumbelOrder, HashOrder, RandomOrder, TopKOrder, ordered_value, tie_hash, words_of
from mads.console.shards import ROW_BITS, sum_up
from mads.console.threshold import Search
from mads.explain.replay import PIECE, Replay
from mads.noise import gumbel

# Why a sample (or its shard) was taken or not.
ORDER, EVERYTHING, MINIMUM = "order", "everything", "minimum"  # ORDER also where it came behind the last one taken
INELIGIBLE, NO_SHARE, MAXIMUM, MINIMA = "ineligible", "no share", "maximum", "minima"


@dataclass(frozen=True)
class AgentWord:
    """What one agent said. score: of the sample; given: theta * score; label and what follows: of its label, in this round's
    record; reward, standard_error: None where the round had none."""

    agent: str
    theta: float
    score: float
    given: float
    attribute: str
    label: str
    weight: float
    reward: float | None
    standard_error: float | None
    probes: int


@dataclass(frozen=True)
class Key:
    """A place in the order. uses: use count; value: what is compared, to 36 significant bits; noise: the part of it that is drawn
    at random, None if none is; tie: the hash that orders equal values, smaller first."""

    id: int
    uses: int
    value: float
    noise: float | None
    tie: int


@dataclass(frozen=True)
class Group:
    """The label, or joint cell of labels, by which the decision shared its tokens.

    share: of the budget (strata); natural: what it would be if the agents did not tilt the shares
    least, most: tokens (bounds, None: no maximum); held: tokens of the label that may be chosen
    chosen_tokens: of the label; ahead, tokens_ahead: samples of the label that come before this one
    due, last_due: the budget at which this sample, and the last one that was taken, has its turn (strata)
    """

    attributes: tuple[str, ...]
    label: str
    held: int
    chosen_tokens: int
    ahead: int
    tokens_ahead: int
    share: float | None = None
    natural: float | None = None
    least: int | None = None
    most: int | None = None
    due: float | None = None
    last_due: float | None = None


@dataclass(frozen=True)
class Standing:
    """A sample, or under unit=shard its shard, in a decision.

    order: class of the order; greatest_first: of the keys' values; fewer_uses_first: use counts come before the values
    total: S of Eq. 6, the mean over the shard under unit=shard; None if the order is not scored
    scaled: top-k: S mapped to [0, 1]; Gumbel: (S - greatest S) / temperature
    key: this one's; last: that of the last one taken by the order, None if it took none
    ahead: of `eligible` candidates, how many come before it; chosen: how many were taken, of `candidates`
    taken, reason: what follows from these numbers
    """

    unit: str
    order: str
    greatest_first: bool
    fewer_uses_first: bool
    tokens: int
    total: float | None
    scaled: float | None
    key: Key
    last: Key | None
    ahead: int
    eligible: int
    candidates: int
    chosen: int
    group: Group | None
    taken: bool
    reason: str


@dataclass(frozen=True)
class _Rows:
    """Candidates: ids, weights, uses, words, cells int64 [n], ties uint64 [n], total float64 [n] or None."""

    ids: np.ndarray
    weights: np.ndarray
    uses: np.ndarray
    total: np.ndarray | None
    cells: np.ndarray
    words: np.ndarray
    ties: np.ndarray

    def take(self, rows: np.ndarray) -> _Rows:
        return _Rows(*(None if column is None else column[rows] for column in vars(self).values()))

    @classmethod
    def joined(cls, parts: list[_Rows]) -> _Rows:
        columns = zip(*(vars(part).values() for part in parts))
        return cls(*(None if column[0] is None else np.concatenate(column) for column in columns))

    def before(self, word: int, tie: int) -> np.ndarray:
        """bool [n]: before a place."""
        return (self.words < word) | ((self.words == word) & (self.ties < tie))


class Field:
    """The candidates of a decision, a piece at a time: the pool's samples, or its shards."""

    def __init__(self, replayed: Replay):
        asked = replayed.asked
        self.plan: Plan = replace(asked.plan, by_count=False)
        self.unit, self._cells = replayed.strategy.limits.unit, asked.cells
        self.attributes = tuple(asked.attributes)
        ids, self._scores = np.asarray(replayed.pool.ids[replayed.positions]), asked.scores
        if self.unit == "shard":
            nothing = (None, PIECE, 1, lambda line: None)
            search = Search(replace(asked.plan, max_uses=None), asked.part, None, asked.scores, *nothing)
            shards, self._total = sum_up(search).candidates(asked.plan.by_count)
            self._columns, self._count = (shards.ids, shards.lengths, shards.uses), len(shards.ids)
            taken = np.searchsorted(shards.ids >> ROW_BITS, np.unique(ids >> ROW_BITS))
        else:
            self._columns, self._count = (asked.part.ids, asked.part.lengths, asked.part.uses), len(asked.part)
            taken = replayed.positions
        self.chosen = np.zeros(self._count, dtype=bool)
        self.chosen[taken] = True
        self.bounds = (0.0, 0.0)
        if asked.scores is not None:
            totals = [(t.min(), t.max()) for where in self.pieces() for t in [self.total(where)]]
            self.bounds = (float(min(low for low, _ in totals)), float(max(high for _, high in totals)))

    def __len__(self) -> int:
        return self._count

    def place_of(self, id_: int, position: int) -> int:
        """Place among the candidates of a sample."""
        return int(np.searchsorted(self._columns[0] >> ROW_BITS, id_ >> ROW_BITS)) if self.unit == "shard" else position

    def pieces(self) -> Iterator[slice]:
        return (slice(start, min(start + PIECE, len(self))) for start in range(0, len(self), PIECE))

    def total(self, where: slice) -> np.ndarray | None:
        if self._scores is None:
            return None
        return self._total[where] if self.unit == "shard" else self._scores.total(where)

    def rows(self, where: slice) -> _Rows:
        ids, lengths, uses = (np.asarray(column[where]) for column in self._columns)
        total = self.total(where)
        cells = np.zeros(len(ids), np.int64) if self._cells is None else self._cells[where]
        # Orders compute in place: they get a copy of S.
        words = words_of(self.plan.order, self.plan.draw, ids, uses, None if total is None else total.copy(), self.bounds)
        ties = tie_hash(self.plan.draw, ids)
        return _Rows(ids, self.plan.weights(lengths), uses.astype(np.int64), total, cells, words, ties)

    def eligible(self, rows: _Rows) -> np.ndarray:
        return np.ones(len(rows.ids), bool) if self.plan.max_uses is None else rows.uses < self.plan.max_uses


@dataclass
class _Count:
    """What was counted over all candidates that are eligible: samples and tokens before the one in question, in all and in its
    cell; tokens of each cell, int64 [cells]; the rows that were taken."""

    eligible: int
    ahead: int
    cell_ahead: int
    cell_tokens_ahead: int
    held: np.ndarray
    taken: _Rows


def stand(field: Field, id_: int, position: int) -> Standing:
    """Where the sample `id_` at `position` of the pool stood."""
    plan, at = field.plan, field.place_of(id_, position)
    own = field.rows(slice(at, at + 1))
    counted = _count(field, own)
    eligible = bool(field.eligible(own)[0])
    taken, reason, last, group = _judge(plan, own, eligible, counted)
    order = plan.order
    return Standing(
        unit=field.unit,
        order=type(order).__name__,
        greatest_first=not isinstance(order, HashOrder),
        fewer_uses_first=order.fewer_uses_first,
        tokens=int(own.weights[0]),
        total=None if own.total is None else float(own.total[0]),
        scaled=_scaled(order, own, field.bounds),
        key=_key(plan, own, 0),
        last=last,
        ahead=counted.ahead,
        eligible=counted.eligible,
        candidates=len(field),
        chosen=len(counted.taken.ids),
        group=None if group is None else replace(group, attributes=field.attributes),
        taken=taken,
        reason=reason,
    )


def _count(field: Field, own: _Rows) -> _Count:
    cells = 1 if field.plan.split is None else field.plan.split.cells
    counted, taken = _Count(0, 0, 0, 0, np.zeros(cells, np.int64), own), [own.take(np.zeros(0, np.int64))]
    for where in field.pieces():
        rows = field.rows(where)
        eligible = field.eligible(rows)
        before = rows.before(own.words[0], own.ties[0]) & eligible
        inside = before & (rows.cells == own.cells[0])
        counted.eligible += int(eligible.sum())
        counted.ahead += int(before.sum())
        counted.cell_ahead += int(inside.sum())
        counted.cell_tokens_ahead += int(rows.weights[inside].sum())
        counted.held += np.bincount(rows.cells[eligible], rows.weights[eligible], minlength=cells).astype(np.int64)
        taken.append(rows.take(np.flatnonzero(field.chosen[where])))
    counted.taken = _Rows.joined(taken)
    return counted


# ---------------------------------------------------------------- what decided


def _judge(plan: Plan, own: _Rows, eligible: bool, counted: _Count) -> tuple[bool, str, Key | None, Group | None]:
    """(taken, reason, key of the last one that the order took, the label's part of it)."""
    judged = {Strata: _by_quota, Bounds: _within_bounds}.get(type(plan.split), _plain)
    taken, reason, last, group = judged(plan, own, counted)
    if not eligible:
        return False, INELIGIBLE, last, group
    return taken, reason, last, group


def _plain(plan: Plan, own: _Rows, counted: _Count) -> tuple[bool, str, Key | None, None]:
    last = _last(counted.taken)
    taken = _not_after(own, counted.taken, last)
    everything = len(counted.taken.ids) == counted.eligible
    return taken, EVERYTHING if everything else ORDER, _key(plan, counted.taken, last), None


def _by_quota(plan: Plan, own: _Rows, counted: _Count) -> tuple[bool, str, Key | None, Group]:
    rows, cell = counted.taken, own.cells
    shares = plan.split.resolved(counted.held)
    order, before = tokens_before(rows.cells, rows.words, rows.ties, rows.weights, np.zeros(len(shares), np.int64))
    due = np.empty(len(order))
    due[order] = dues(plan, shares, rows.cells[order], rows.weights[order], before)
    last = int(np.lexsort((rows.ties, due))[-1])
    natural = replace(plan.split, tilt=None).resolved(counted.held)[cell[0]] if plan.split.tilt is not None else None
    natural = None if natural is None else float(natural)
    group = _group(plan, own, counted, share=float(shares[cell[0]]), natural=natural, last_due=float(due[last]))
    if shares[cell[0]] == 0:
        return False, NO_SHARE, _key(plan, rows, last), group
    mine = float(dues(plan, shares, cell, own.weights, np.array([counted.cell_tokens_ahead]))[0])
    taken = (mine, int(own.ties[0])) <= (float(due[last]), int(rows.ties[last]))
    everything = len(rows.ids) == counted.eligible
    return taken, EVERYTHING if everything else ORDER, _key(plan, rows, last), replace(group, due=mine)


def _within_bounds(plan: Plan, own: _Rows, counted: _Count) -> tuple[bool, str, Key | None, Group]:
    rows, cell, ahead = counted.taken, own.cells[0], counted.cell_tokens_ahead
    least, most = plan.split.tokens(plan.budget)
    order, before = tokens_before(rows.cells, rows.words, rows.ties, rows.weights, np.zeros(len(least), np.int64))
    by_order = rows.take(order[before >= least[rows.cells[order]]])
    last = _last(by_order) if len(by_order.ids) else None
    key = None if last is None else _key(plan, by_order, last)
    limited = most[cell] < np.iinfo(np.int64).max
    group = _group(plan, own, counted, least=int(least[cell]), most=int(most[cell]) if limited else None)
    if ahead < least[cell]:
        return True, MINIMUM, key, group
    if ahead >= most[cell]:
        return False, MAXIMUM, key, group
    if last is None:
        return False, MINIMA, key, group
    return _not_after(own, by_order, last), ORDER, key, group


def _group(plan: Plan, own: _Rows, counted: _Count, **known) -> Group:
    cell, rows = int(own.cells[0]), counted.taken
    return Group(
        attributes=(),  # `stand` knows them
        label=plan.split.name(cell) if isinstance(plan.split, Strata) else plan.split.labels[cell],
        held=int(counted.held[cell]),
        chosen_tokens=int(rows.weights[rows.cells == cell].sum()),
        ahead=counted.cell_ahead,
        tokens_ahead=counted.cell_tokens_ahead,
        **known,
    )


def _last(rows: _Rows) -> int:
    return int(np.lexsort((rows.ties, rows.words))[-1])


def _not_after(own: _Rows, rows: _Rows, last: int) -> bool:
    return (int(own.words[0]), int(own.ties[0])) <= (int(rows.words[last]), int(rows.ties[last]))


# ---------------------------------------------------------------- numbers for people


def _key(plan: Plan, rows: _Rows, at: int) -> Key:
    order, draw, where = plan.order, plan.draw, slice(at, at + 1)
    bits, noise = rows.words[where] & np.int64((1 << KEY_BITS) - 1), None
    value = bits[0] / 2.0**KEY_BITS if isinstance(order, HashOrder) else 0.0 - ordered_value(bits)[0]
    if isinstance(order, GumbelOrder | RandomOrder):
        noise = float(gumbel(draw.seed, "decide/noise", draw.round, rows.ids[where])[0])
    elif isinstance(order, HashOrder):
        noise = float(value)
    return Key(int(rows.ids[at]), int(rows.uses[at]), float(value), noise, int(rows.ties[at]))


def _scaled(order, own: _Rows, bounds: tuple[float, float]) -> float | None:
    low, high = bounds
    if isinstance(order, TopKOrder):
        return float((own.total[0] - low) / (high - low)) if high > low else 1.0
    return float((own.total[0] - high) / order.temperature) if isinstance(order, GumbelOrder) else None


def words_of_agents(replayed: Replay, position: int) -> list[AgentWord]:
    """What each agent gave the sample at `position`."""
    words, view = [], replayed.pool.view(slice(position, position + 1))
    for agent, theta in zip(replayed.agents, replayed.theta.tolist()):
        score = float(agent.score(view)[0])
        label = replayed.pool.labels(agent.attribute)[int(view.codes(agent.attribute)[0])]
        row = next(row for row in replayed.record.labels[agent.name] if row.label == label)
        given = (row.weight, row.reward_mean, row.reward_se, row.probes)
        words.append(AgentWord(agent.name, theta, score, theta * score, agent.attribute, label, *given))
    return words
