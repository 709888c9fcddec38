"""From a recipe to a decision: the plan, and the way in which slices of the pool meet. The ids are the same either way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mads.agents.base import Agent
from mads.collectives import all_gather_json, broadcast_array
from mads.console.column import BandCells
from mads.console.decide import Bounds, Candidates, Decision, Plan, Strata, decide
from mads.console.exchange import gather_column, raise_together
from mads.console.order import Draw
from mads.console.recipe import Limits, Recipe, Tilt
from mads.console.shards import select_shards
from mads.console.slices import CallScore, Cells, LabelScore, PoolSlice, SliceScores, Window
from mads.console.strategy import is_label_agent
from mads.console.threshold import select_by_threshold
from mads.topology import Topology

GATHER_UP_TO = 200_000  # samples; from there on the sort on rank 0 takes longer than the threshold search on all ranks
MOST_STRATA = 1 << 24  # joint cells; a table of them is held
_LEAST_EXPONENT = -60.0


def choose(
    recipe: Recipe,
    limits: Limits,
    draw: Draw,
    budget: int,
    pool: Any,
    agents: Sequence[Agent],
    theta: np.ndarray,
    uses: np.ndarray,
    topology: Topology,
    piece: int,
    alive: Callable[[str], None],
) -> Decision | None:
    """Collective: one decision; on rank 0, None elsewhere.

    Args:
        budget: tokens to cover.
        uses: int, use counts of this rank's slice (`own_slice`).
        piece: samples read at a time.

    Raises:
        ValueError: what is wrong with the budget, the pool or the scores; RankFailedError when another rank raised.
    """
    asked, error = None, None
    try:
        asked = lay_out(recipe, limits, draw, budget, pool, agents, theta, uses, own_slice(pool, topology))
    except Exception as caught:  # told to the other ranks, then raised
        error = caught
    raise_together(error, topology, "the decision")
    group = topology.group("control")
    split = asked.plan.split
    if isinstance(split, Strata) and split.tilt is not None:  # rank 0's, whatever the last bit of exp() is elsewhere
        tilt = broadcast_array(split.tilt, group, np.float64)
        asked = replace(asked, plan=replace(asked.plan, split=replace(split, tilt=tilt)))
    if limits.unit == "shard":
        decision = select_shards(asked.plan, asked.part, asked.scores, group, piece, alive)
    elif limits.exchange == "gather" or (limits.exchange == "auto" and len(pool) <= GATHER_UP_TO):
        decision = _gathered(asked.plan, asked.whole, pool, asked.part, asked.scores, topology, piece, alive)
    else:
        decision = select_by_threshold(asked.plan, asked.part, asked.cells, asked.scores, group, piece, alive=alive)
    raise_together(_nothing_chosen(decision, limits), topology, "the decision")
    return decision


def _nothing_chosen(decision: Decision | None, limits: Limits) -> ValueError | None:
    """Samples may be eligible and yet all of them lie outside of the band, or belong to labels that may hold nothing."""
    if decision is None or len(decision.ids):
        return None
    return ValueError(
        f"no sample can be chosen: those that selection.max_uses={limits.max_uses} leaves are outside of the band, or their "
        "labels are at their greatest share; raise it, widen the band or the bounds, or add data"
    )


@dataclass(frozen=True)
class Asked:
    """A decision that is asked for, over a slice of the pool.

    attributes: whose joint labels are the cells of `plan.split`
    cells, whole: the label that `plan.split` speaks of, of the slice and of the whole pool; None without a split
    scores: None in an unscored order
    """

    plan: Plan
    attributes: Sequence[str]
    part: PoolSlice
    cells: Cells | BandCells | None
    whole: Cells | BandCells | None
    scores: SliceScores | None


def lay_out(
    recipe: Recipe,
    limits: Limits,
    draw: Draw,
    budget: int,
    pool: Any,
    agents: Sequence[Agent],
    theta: np.ndarray,
    uses: np.ndarray,
    bounds: tuple[int, int],
) -> Asked:
    """What `choose` decides on, for the samples from bounds[0] to bounds[1], of which `uses` are the use counts.

    Raises:
        ValueError: what is wrong with the budget, the labels or the agents.
    """
    start, stop = bounds
    limits = limits.over(pool)
    split, attributes = _split(recipe, limits, pool, agents, theta)
    plan = Plan(recipe.order, draw, budget, split, limits.max_uses)
    part = PoolSlice(Window(pool.ids, start, stop), Window(pool.lengths, start, stop), np.asarray(uses))
    scores = None
    if recipe.order.scored and recipe.score is not None:
        scores = SliceScores([recipe.score.of(pool, start, stop)], np.ones(1))
    elif recipe.order.scored:
        scores = SliceScores([_score(agent, pool, start, stop) for agent in agents], theta)
    cells, whole = (_cells(recipe, split, attributes, pool, *ends) for ends in (bounds, (0, len(pool))))
    return Asked(plan, attributes, part, cells, whole, scores)


def own_slice(pool: Any, topology: Topology) -> tuple[int, int]:
    """(start, stop) of the samples that this rank scores and counts uses of: a replica leader's slice, empty on other ranks."""
    return pool.slice_bounds(topology.coordinate("dp"), topology.size("dp")) if topology.is_replica_leader else (0, 0)


def _split(
    recipe: Recipe, limits: Limits, pool: Any, agents: Sequence[Agent], theta: np.ndarray
) -> tuple[Strata | Bounds | None, Sequence[str]]:
    """How labels share the budget, and the attributes whose labels these are."""
    if recipe.strata:
        sizes = [len(pool.labels(attribute)) for attribute in recipe.strata]
        if np.prod(sizes, dtype=np.float64) > MOST_STRATA:
            raise ValueError(
                f"the labels of {list(recipe.strata)} form {'x'.join(map(str, sizes))} joint cells, at most {MOST_STRATA} can be "
                "stratified; use attributes with fewer labels"
            )

        def name(cell: int) -> str:
            codes = np.unravel_index(cell, sizes)
            return "/".join(pool.labels(attribute)[code] for attribute, code in zip(recipe.strata, codes))

        cells = int(np.prod(sizes))
        if isinstance(recipe.shares, Tilt):
            tilt = _tilt(recipe, sizes, agents, theta)
            return Strata(cells, name, "natural", tilt, recipe.shares.floor), recipe.strata
        shares = recipe.shares if isinstance(recipe.shares, str | np.ndarray) else _by_name(recipe, pool)
        return Strata(cells, name, shares), recipe.strata
    split, attributes = None, ()
    for attribute, bounds in limits.bounds.items():
        labels = pool.labels(attribute)
        if unknown := sorted(set(bounds) - set(labels)):
            raise ValueError(f"selection.bounds.{attribute} names {unknown}; the labels are {list(labels)}")
        shares = np.array([bounds.get(label, (0.0, 1.0)) for label in labels], dtype=np.float64)
        split, attributes = Bounds(labels, shares[:, 0], shares[:, 1]), (attribute,)
    return split if recipe.band is None else recipe.band.bounded(split), attributes


def _tilt(recipe: Recipe, sizes: Sequence[int], agents: Sequence[Agent], theta: np.ndarray) -> np.ndarray:
    """exp(S_c / temperature) of each joint cell, float64 [cells], the greatest 1."""
    total = np.zeros(sizes)
    for agent, trust in zip(agents, theta):
        if is_label_agent(agent):
            axis = recipe.strata.index(agent.attribute)
            total += (trust * agent.weights).reshape([-1 if i == axis else 1 for i in range(len(sizes))])
    # Bounded below, so that cells far behind the best one still compare with each other where only they hold samples.
    return np.exp(np.maximum((total - total.max()) / recipe.shares.temperature, _LEAST_EXPONENT)).ravel()


def _by_name(recipe: Recipe, pool: Any) -> np.ndarray:
    """Shares of the one attribute's labels, float64 [L], in the order of their codes."""
    [attribute] = recipe.strata
    labels = pool.labels(attribute)
    if unknown := sorted(set(recipe.shares) - set(labels)):
        raise ValueError(f"selection.shares names {unknown}, but the labels of {attribute!r} are {list(labels)}")
    return np.array([recipe.shares.get(label, 0.0) for label in labels], dtype=np.float64)


def _cells(
    recipe: Recipe, split: Strata | Bounds | None, attributes: Sequence[str], pool: Any, start: int, stop: int
) -> Cells | BandCells | None:
    """The label that `split` speaks of, of the samples `start` to `stop`; None without a split."""
    columns = [Window(pool.codes(attribute), start, stop) for attribute in attributes]
    cells = Cells(attributes, columns, [len(pool.labels(attribute)) for attribute in attributes]) if attributes else None
    return cells if recipe.band is None else recipe.band.cells(pool, start, stop, cells, split.cells - 1)


def _score(agent: Agent, pool: Any, start: int, stop: int) -> LabelScore | CallScore:
    """A label agent's weights are looked up; any other agent is asked."""
    if is_label_agent(agent):
        return LabelScore(agent.name, Window(pool.codes(agent.attribute), start, stop), agent.weights)
    return CallScore(agent.name, lambda where: agent.score(pool.view(slice(start + where.start, start + where.stop))))


def _gathered(
    plan: Plan,
    cells: Cells | BandCells | None,
    pool: Any,
    part: PoolSlice,
    scores: SliceScores | None,
    topology: Topology,
    piece: int,
    alive: Callable[[str], None],
) -> Decision | None:
    """S and use counts meet on rank 0, which sorts."""
    total, wrong, error = np.zeros(0 if scores is None else len(part)), np.zeros(0, np.int64), None
    try:
        if scores is not None:
            wrong = np.zeros(len(scores.agents), dtype=np.int64)
            for where in part.pieces(piece):
                total[where], bad = scores.checked_total(where)
                wrong += bad
                alive(f"scored {where.stop} of {len(part)} samples of this slice")
    except Exception as caught:  # told to the other ranks, then raised
        error = caught
    raise_together(error, topology, "scoring")
    if scores is not None:
        _check_scores(np.sum(all_gather_json(wrong.tolist(), topology.group("control")), axis=0), scores, len(pool))
    total = None if scores is None else gather_column(total, topology, len(pool))
    uses = gather_column(np.asarray(part.uses), topology, len(pool))
    decision, error = None, None
    if topology.rank == 0:
        try:
            candidates = Candidates(np.asarray(pool.ids), np.asarray(pool.lengths), uses)
            decision = decide(plan, candidates, total, None if cells is None else cells[slice(0, len(pool))])
        except Exception as caught:  # told to the other ranks, then raised
            error = caught
    raise_together(error, topology, "the decision")
    return decision


def _check_scores(wrong: np.ndarray, scores: SliceScores, candidates: int) -> None:
    for agent, count in zip(scores.agents, wrong):
        if count:
            raise ValueError(f"agent {agent.name!r} gave {count} of {candidates} samples a score that is NaN or infinite")
