"""Why a sample was or was not chosen, in words and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mads.console.recipe import Tilt
from mads.data.schema import DataError, split_ids
from mads.explain.replay import Replay, packed
from mads.explain.standing import (
    EVERYTHING,
    INELIGIBLE,
    MAXIMUM,
    MINIMA,
    MINIMUM,
    NO_SHARE,
    AgentWord,
    Field,
    Key,
    Standing,
    stand,
    words_of_agents,
)

ORDERS = {
    "TopKOrder": "top-k: S mapped to [0, 1], divided by 1 + use_decay x uses; the greatest first",
    "GumbelOrder": "Gumbel top-k: fewer uses first, then (S - greatest S) / temperature + noise; the greatest first",
    "RandomOrder": "random: fewer uses first, then noise; the greatest first",
    "HashOrder": "random: fewer uses first, then noise; the smallest first",
}


@dataclass(frozen=True)
class Explanation:
    """A sample in a round.

    labels: attribute -> its label; values: attribute -> its value
    place: in training order, from 0, None if it was not chosen; step: the optimizer step that takes its row, from 1, None if it
        was not chosen or its row is not part of a whole global batch; trained: whether the run reached that step, None: not yet
    why: sentences; notes: the record's
    """

    run: str
    round: int
    selection: str
    id: int
    shard: int
    row: int
    tokens: int
    uses: int
    labels: dict[str, str]
    values: dict[str, float]
    agents: list[AgentWord]
    standing: Standing
    chosen: bool
    place: int | None
    step: int | None
    trained: bool | None
    why: list[str]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON value; numbers are exact."""
        return dataclasses.asdict(self)


class Explainer:
    """Explains samples of one round that was decided again."""

    def __init__(self, replayed: Replay):
        self.replayed, self.field = replayed, Field(replayed)

    def position_of(self, id_: int) -> int:
        """Raises DataError for an id that the pool did not hold in this round."""
        pool, round_ = self.replayed.pool, self.replayed.record.round
        shard, row = (int(part[0]) for part in split_ids(np.array([id_])))
        if not 0 <= shard < len(pool.shards):
            raise DataError(
                f"there is no sample {id_} ({shard}:{row}) in round {round_}: the pool had the shards 0 to {len(pool.shards) - 1}"
            )
        if row >= pool.shards[shard]:
            raise DataError(f"there is no sample {id_} ({shard}:{row}): shard {shard} has the rows 0 to {pool.shards[shard] - 1}")
        return int(pool.ids.first[shard]) + row

    def explain(self, id_: int) -> Explanation:
        """Raises DataError for an unknown id, and when the verdict is not what the run folder holds."""
        replayed, pool, position = self.replayed, self.replayed.pool, self.position_of(id_)
        standing = stand(self.field, id_, position)
        places = np.flatnonzero(replayed.positions == position)
        if standing.taken != bool(len(places)):
            raise DataError(
                f"sample {id_} follows to be {'chosen' if standing.taken else 'left out'} in round {replayed.record.round}, but "
                f"{replayed.run} holds the contrary: {standing}"
            )
        step = trained = None
        if len(places):
            step, trained = self._training(position)
        view = pool.view(slice(position, position + 1))
        labels = {a: pool.labels(a)[int(view.codes(a)[0])] for a in pool.attributes}
        shard, row = (int(part[0]) for part in split_ids(np.array([id_])))
        return Explanation(
            run=str(replayed.run),
            round=replayed.record.round,
            selection=replayed.record.selection,
            id=id_,
            shard=shard,
            row=row,
            tokens=int(pool.lengths[position]),
            uses=int(replayed.uses[position]),
            labels=labels,
            values={a: v for a in pool.attributes if (v := self._value(view, a)) is not None},
            agents=words_of_agents(replayed, position),
            standing=standing,
            chosen=standing.taken,
            place=int(places[0]) if len(places) else None,
            step=step,
            trained=trained,
            why=self._why(standing, step, trained),
            notes=list(replayed.record.notes),
        )

    @staticmethod
    def _value(view, attribute: str) -> float | None:
        try:
            value = float(view.values(attribute)[0])
        except DataError:  # labels only
            return None
        return value if np.isfinite(value) else None

    # ------------------------------------------------------------ after the decision

    @cached_property
    def _steps(self) -> dict[int, int]:
        """Position -> step of the run that takes its row, of the samples in whole global batches."""
        replayed = self.replayed
        positions, _, packer = packed(replayed.config, replayed.pool, replayed.pool.ids[replayed.positions])
        packing, batch = packer.take_all(), replayed.config.train.global_batch_size
        rows = np.repeat(np.arange(packing.rows), np.diff(packing.starts))
        whole = rows < packing.rows // batch * batch
        steps = replayed.record.step + 1 + rows[whole] // batch
        return dict(zip(positions[packing.order[whole]].tolist(), steps.tolist()))

    def _training(self, position: int) -> tuple[int | None, bool | None]:
        step, consumption = self._steps.get(position), self.replayed.consumption
        if step is None:
            return None, False
        return step, True if step <= consumption.until else False if consumption.over else None

    # ------------------------------------------------------------ sentences

    def _why(self, standing: Standing, step: int | None, trained: bool | None) -> list[str]:
        said = [*self._kind(), *self._shard(standing), *self._reason(standing)]
        if standing.taken and trained:
            said.append(f"Step {step} trained on it.")
        elif standing.taken and trained is False:
            end = f"the round ended after step {self.replayed.consumption.until}" if step else "its row filled no global batch"
            said.append(f"It was not trained on and went back to the pool: {end}.")
        elif standing.taken:
            said.append(f"Step {step} is to train on it; the run has logged {self.replayed.consumption.until} steps.")
        return said

    def _kind(self) -> list[str]:
        replayed = self.replayed
        if replayed.agents and not replayed.scored:
            if isinstance(replayed.recipe.shares, Tilt) or replayed.recipe.order.scored:
                return ["The round had no rewards: the agents decided by what they believe before any, their priors."]
            return ["The round had no rewards: nothing was scored, and the agents had no part in the decision."]
        return []

    def _shard(self, standing: Standing) -> list[str]:
        if standing.unit != "shard":
            return []
        return [
            f"Whole shards are chosen: its shard has {standing.tokens:,} tokens and a mean use count of {standing.key.uses}"
            + (f"; the mean of S over it is {standing.total:.6g}." if standing.total is not None else ".")
        ]

    def _reason(self, s: Standing) -> list[str]:
        what, limits = ("its shard" if s.unit == "shard" else "it"), self.replayed.strategy.limits
        if s.reason == INELIGIBLE:
            return [f"Not eligible: {what} was {_used(s.key.uses)}, selection.max_uses={limits.max_uses}."]
        if s.reason == EVERYTHING:
            return [f"Everything was chosen: the {s.eligible:,} eligible {s.unit}s do not hold more than the budget."]
        group = "" if s.group is None else f"{'/'.join(s.group.attributes)}={s.group.label}"
        if s.reason == NO_SHARE:
            return [f"Its label {group} has no share of the budget."]
        if s.reason == MINIMUM:
            return [
                f"Its label {group} has a minimum of {s.group.least:,} tokens, and only {s.group.tokens_ahead:,} of them "
                "come before it in the order: the minimum took it."
            ]
        if s.reason == MAXIMUM:
            return [
                f"Its label is at its bound: {s.group.tokens_ahead:,} tokens of {group} come before it, its maximum is "
                f"{s.group.most:,} tokens."
            ]
        if s.reason == MINIMA:
            return ["The minima of the labels took the whole budget, and it is behind its own label's minimum."]
        if s.group is not None and s.group.due is not None:
            return self._quota(s, group)
        return self._order(s)

    def _quota(self, s: Standing, group: str) -> list[str]:
        g, budget = s.group, self.replayed.record.budget_tokens
        met = "" if s.taken else ": the label's quota was met by samples before it"
        tilted = []
        if g.natural is not None:
            tilted = [f"The agents' weights turn the natural share {g.natural:.4g} of its label {group} into {g.share:.4g}."]
        return [
            *tilted,
            f"Its label {group} has {g.share:.4g} of the {budget:,} tokens, a quota of {g.share * budget:,.1f}; {g.ahead:,} "
            f"samples with {g.tokens_ahead:,} tokens of the label come before it ({self._noise(s)}).",
            f"So it is due at a budget of {g.due:,.1f} tokens, the last one taken was due at {g.last_due:,.1f}{met}.",
        ]

    def _noise(self, s: Standing) -> str:
        uses = f"fewer uses come first, this one was {_used(s.key.uses)}" if s.fewer_uses_first else f"{s.key.uses} uses"
        return f"{uses}; noise {_number(s.key.noise)}" if s.key.noise is not None else uses

    def _order(self, s: Standing) -> list[str]:
        """It was taken, or not, for its place in the order."""
        mine, last = s.key, s.last
        if mine.id == last.id:
            return ["It is the last one that the budget took."]
        if s.fewer_uses_first and mine.uses != last.uses:
            compared = f"it was {_used(mine.uses)}, the last one taken was {_used(last.uses)}, and fewer uses come first"
        elif mine.value == last.value:
            compared = f"its key {_number(mine.value)} is equal to that of the last one taken, and the hash of the ids decided"
        else:
            compared = f"its key is {_number(mine.value)}, that of the last one taken {_number(last.value)}"
        said = [f"{'It comes before the end of the budget' if s.taken else 'The budget was covered before it'}: {compared}."]
        if not s.taken and s.order == "TopKOrder" and mine.uses and s.scaled > last.value:
            said.append(f"Without its {mine.uses} uses its key would be {_number(s.scaled)}, and it would have been taken.")
        return said


def _used(count: int) -> str:
    return {0: "never used", 1: "used once"}.get(count, f"used {count} times")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


# ---------------------------------------------------------------- as text


def as_text(e: Explanation) -> str:
    """The explanation for a terminal."""
    s = e.standing
    labels = ", ".join(f"{a}={label}" + (f" ({_number(e.values[a])})" if a in e.values else "") for a, label in e.labels.items())
    lines = [
        f"sample {e.shard}:{e.row} (id {e.id}) in round {e.round} of {e.run}, selection={e.selection}: "
        f"{f'chosen, place {e.place}' if e.chosen else 'not chosen'}",
        f"  {e.tokens} tokens, {_used(e.uses)} before; {labels}",
        "",
    ]
    if e.agents:
        rows = [("agent", "theta", "score", "theta x score", "label", "weight", "reward", "s.e.", "probes")]
        rows += [_agent_row(word) for word in e.agents]
        lines += [*_table(rows), ""]
    if s.total is not None:
        lines.append(f"  {'S' if s.unit == 'sample' else 'S, mean of the shard'} = {_number(s.total)}")
    elif s.group is not None and s.group.natural is not None:  # not a key of the order: it has set the shares
        lines.append(f"  S = {_number(sum(word.given for word in e.agents))}")
    lines += [f"  order: {ORDERS.get(s.order, s.order)}", f"  this one: {_key(s.key, s)}"]
    if s.last is not None:
        lines.append(f"  last one: {_key(s.last, s)}, id {s.last.id}")
    out = "" if s.eligible == s.candidates else f", {s.candidates - s.eligible:,} more are not eligible"
    lines.append(f"  {s.ahead:,} of {s.eligible:,} {s.unit}s come before it, {s.chosen:,} were chosen{out}")
    lines += ["", *(f"  {sentence}" for sentence in e.why)]
    if e.notes:
        lines += ["", "  notes of the round:", *(f"  - {note}" for note in e.notes)]
    return "\n".join(lines)


def _agent_row(w: AgentWord) -> tuple[str, ...]:
    numbers = (_number(v) for v in (w.theta, w.score, w.given))
    return (w.agent, *numbers, f"{w.attribute}={w.label}", *map(_number, (w.weight, w.reward, w.standard_error)), str(w.probes))


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _key(key: Key, s: Standing) -> str:
    scaled = f" (S scaled {_number(s.scaled)})" if s.scaled is not None and key is s.key else ""
    noise = f", noise {_number(key.noise)}" if key.noise is not None else ""
    return f"key {_number(key.value)}{scaled}{noise}, {_used(key.uses)}"
