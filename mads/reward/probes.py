"""Which samples are probed in a round. Drawing only; nothing here touches a model.

Draws are uniform inside a label and pure in (seed, agent, round, id): of each label the samples with the smallest noise hashes.
A short sample has a noisy reward. It is drawn all the same, because leaving it out would bias its label; the rules that learn
from rewards weight each probe by its number of targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mads.agents.base import AttributeView
from mads.noise import hash64

SLACK = 6.0  # standard deviations: one label in a billion is looked at twice


@dataclass(frozen=True)
class PerAgentProbes:
    """Every agent draws `count` probes and learns from its own only, as in the paper."""

    count: int
    shared = False
    redrawn = True

    def quota(self, agents: int) -> list[int]:
        return [self.count] * agents


@dataclass(frozen=True)
class SharedProbes:
    """The agents draw `count` probes between them and each learns from all: a probe carries every agent's label."""

    count: int
    shared = True
    redrawn = True

    def quota(self, agents: int) -> list[int]:
        return [self.count // agents + (i < self.count % agents) for i in range(agents)]


@dataclass(frozen=True)
class FixedProbes(SharedProbes):
    """`SharedProbes` that are the same in every round, so that a loss changes by what the model learned and not by the draw."""

    redrawn = False


ProbePlan = PerAgentProbes | SharedProbes


@dataclass(frozen=True)
class Probes:
    """The n probes of one round, each once.

    positions: int64 [n], ascending places in the pool; ids: int64 [n], the samples' ids
    importance: float64 [n], inverse inclusion probability, mean 1
    members: agent -> bool [n], the probes that the agent drew
    shared: whether each agent learns from all probes, or from those that it drew
    codes: agent -> integers [n], the probes' labels of the agent's attribute; sizes: agent -> number of labels
    """

    positions: np.ndarray
    ids: np.ndarray
    importance: np.ndarray
    members: dict[str, np.ndarray]
    shared: bool
    codes: dict[str, np.ndarray] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def of_agent(self, agent: str) -> np.ndarray:
        """Mask, bool [n], of the probes that an agent learns from."""
        return np.ones(len(self.positions), dtype=bool) if self.shared else self.members[agent]


@dataclass(frozen=True)
class RoundRewards:
    """What the reward pass says about a round's probes; equal on every rank.

    rewards: float64 [n], positive = helps the references, on any scale
    targets: int64 [n], number of targets behind each reward
    direction: diagnostics of the reward direction, JSON values
    seconds: phase (reference, probes) -> wall seconds
    references: reference task -> mean token loss of its direction part, for selections that ask for it
    notes: what was not as it should be, for the record
    errors: agent -> float64 [labels], standard errors of the labels' levels in units of the rewards, where the spread of single
        rewards does not tell them; records show them
    scale: of rewards that are shrunk already: the standard deviation, in units of the rewards, of what they were shrunk from;
        the console measures gains in it, so that rewards that are mostly noise move little. None: rewards of single probes,
        which the agents' rules shrink
    """

    probes: Probes
    rewards: np.ndarray
    targets: np.ndarray
    direction: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    references: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    errors: dict[str, np.ndarray] = field(default_factory=dict)
    scale: float | None = None


def draw_probes(
    view: AttributeView,
    plan: ProbePlan,
    attributes: Mapping[str, str],
    seed: int,
    round_: int,
    part: slice | None = None,
    join: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
    piece: int = 1 << 18,
) -> Probes:
    """Draw a round's probes from the pool `view`; `attributes` maps each agent to the attribute that it draws by.

    A label that holds fewer samples than its quota gives all it has. A sample that several agents drew counts once, so its
    inclusion probability is 1 - prod_A (1 - pi_A), with pi_A = quota / number of samples of its label.

    Args:
        part: positions that this process reads (None: all); together the processes' parts are the pool.
        join: joins the rows [k, ...] of all processes, on every process.
        piece: samples read at a time.

    Raises:
        ValueError: if an agent's share of the probes does not reach one per label, or the pool is empty.
    """
    if len(view) == 0:
        raise ValueError("the pool is empty: no probe can be drawn")
    part = slice(0, len(view)) if part is None else part
    round_ = round_ if plan.redrawn else 0
    pieces = [slice(start, min(start + piece, part.stop)) for start in range(part.start, part.stop, piece)]
    drawn: dict[str, np.ndarray] = {}
    inclusion: dict[str, np.ndarray] = {}  # of each label
    for (agent, attribute), count in zip(attributes.items(), plan.quota(len(attributes))):
        column, labels = view.codes(attribute), len(view.labels(attribute))
        own = np.zeros((1, labels), dtype=np.int64)
        for where in pieces:
            own[0] += np.bincount(column[where], minlength=labels)
        sizes = join(own).sum(0)
        quota = _quota(sizes, count, agent)
        inclusion[agent] = np.divide(quota, sizes, out=np.zeros(labels), where=sizes > 0)
        noise = lambda ids, agent=agent: hash64(seed, f"probes/{agent}", round_, ids)  # noqa: E731
        drawn[agent] = np.sort(_draw(column, view.ids, noise, pieces, sizes, quota, join))
    positions = np.unique(np.concatenate(list(drawn.values())))
    missed = np.ones(len(positions))  # probability that no agent draws the sample
    for agent, attribute in attributes.items():
        missed *= 1 - inclusion[agent][view.codes(attribute)[positions]]
    importance = 1 / (1 - missed)
    members = {agent: np.isin(positions, own, assume_unique=True) for agent, own in drawn.items()}
    codes = {agent: np.asarray(view.codes(attribute)[positions]) for agent, attribute in attributes.items()}
    sizes = {agent: len(view.labels(attribute)) for agent, attribute in attributes.items()}
    return Probes(positions, np.asarray(view.ids[positions]), importance / importance.mean(), members, plan.shared, codes, sizes)


def _quota(sizes: np.ndarray, count: int, agent: str) -> np.ndarray:
    """Probes of each label, int64 [L]: count / L of each of the L labels that the pool holds; what does not divide goes one
    each to the labels with the most samples."""
    present = np.flatnonzero(sizes)
    if count < len(present):
        raise ValueError(
            f"agent {agent!r} has {count} probes for {len(present)} labels in the pool; "
            f"set at least {len(present)} probes per agent"
        )
    quota = np.zeros(len(sizes), dtype=np.int64)
    quota[present] = count // len(present)
    by_size = present[np.argsort(-sizes[present], kind="stable")]
    quota[by_size[: count % len(present)]] += 1
    return np.minimum(quota, sizes)


def _smallest(rows: np.ndarray, quota: np.ndarray) -> np.ndarray:
    """Of the rows (label, hash, position; uint64 [n, 3]) each label's with the smallest hashes, as many as its quota. Hashes of
    different ids differ, so these are a definite set."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    rank = np.arange(len(rows)) - np.searchsorted(rows[:, 0], rows[:, 0], side="left")
    return rows[rank < quota[rows[:, 0].astype(np.int64)]]


def _limits(sizes: np.ndarray, quota: np.ndarray, slack: float) -> np.ndarray:
    """Hash up to which so many samples of each label are looked at, uint64 [L], that its quota is expected among them with
    `slack` standard deviations to spare; all of them where that is nearly the whole label."""
    wanted = quota + slack * (np.sqrt(quota) + 1)
    some, limits = wanted < sizes, np.full(len(sizes), 2**64 - 1, dtype=np.uint64)
    limits[some] = (wanted[some] / sizes[some] * 2.0**64).astype(np.uint64)
    return limits


def _draw(
    column: np.ndarray,
    ids: np.ndarray,
    noise: Callable[[np.ndarray], np.ndarray],
    pieces: Sequence[slice],
    sizes: np.ndarray,
    quota: np.ndarray,
    join: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Positions of the samples with the smallest hashes of each label, int64 [sum of quota]. One pass keeps little more than the
    quotas, because hashes are uniform; should it be too little for a label, on all processes together, another one keeps more."""
    slack = SLACK
    while True:
        limits, rows = _limits(sizes, quota, slack), [np.zeros((0, 3), dtype=np.uint64)]  # label, hash, position
        for where in pieces:
            codes, hashes = column[where], noise(ids[where])
            near = np.flatnonzero(hashes <= limits.take(codes))
            rows.append(np.stack([codes[near].astype(np.uint64), hashes[near], (where.start + near).astype(np.uint64)], axis=1))
        found = join(np.concatenate(rows))
        if (np.bincount(found[:, 0].astype(np.int64), minlength=len(quota)) >= quota).all():
            return _smallest(found, quota)[:, 2].astype(np.int64)
        slack = 4 * slack + 4
