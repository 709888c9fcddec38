"""Which samples are probed in a round. Drawing only; nothing here touches a model.

Draws are uniform inside a label and pure in (seed, agent, round, id): of each label the samples with the smallest noise hashes.
A short sample has a noisy reward. It is drawn all the same, because leaving it out would bias its label; the rules that learn
from rewards weight each probe by its number of targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mads.agents.base import AttributeView
from mads.noise import hash64


@dataclass(frozen=True)
class PerAgentProbes:
    """Every agent draws `count` probes and learns from its own only, as in the paper."""

    count: int
    shared = False

    def quota(self, agents: int) -> list[int]:
        return [self.count] * agents


@dataclass(frozen=True)
class SharedProbes:
    """The agents draw `count` probes between them and each learns from all: a probe carries every agent's label."""

    count: int
    shared = True

    def quota(self, agents: int) -> list[int]:
        return [self.count // agents + (i < self.count % agents) for i in range(agents)]


ProbePlan = PerAgentProbes | SharedProbes


@dataclass(frozen=True)
class Probes:
    """The n probes of one round, each once.

    positions: int64 [n], ascending places in the pool
    importance: float64 [n], inverse inclusion probability, mean 1
    members: agent -> bool [n], the probes that the agent drew
    shared: whether each agent learns from all probes, or from those that it drew
    """

    positions: np.ndarray
    importance: np.ndarray
    members: dict[str, np.ndarray]
    shared: bool

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
    """

    probes: Probes
    rewards: np.ndarray
    targets: np.ndarray
    direction: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def draw_probes(view: AttributeView, plan: ProbePlan, attributes: Mapping[str, str], seed: int, round_: int) -> Probes:
    """Draw a round's probes from the pool `view`; `attributes` maps each agent to the attribute that it draws by.

    A label that holds fewer samples than its quota gives all it has. A sample that several agents drew counts once, so its
    inclusion probability is 1 - prod_A (1 - pi_A), with pi_A = quota / number of samples of its label.

    Raises:
        ValueError: if an agent's share of the probes does not reach one per label, or the pool is empty.
    """
    if len(view.ids) == 0:
        raise ValueError("the pool is empty: no probe can be drawn")
    drawn: dict[str, np.ndarray] = {}
    missed = np.ones(len(view.ids))  # probability that no agent draws the sample
    for (agent, attribute), count in zip(attributes.items(), plan.quota(len(attributes))):
        noise = hash64(seed, f"probes/{agent}", round_, view.ids)
        drawn[agent], inclusion = _draw_by_label(
            np.asarray(view.codes(attribute)), len(view.labels(attribute)), count, noise, agent
        )
        missed *= 1 - inclusion
    positions = np.unique(np.concatenate(list(drawn.values())))
    importance = 1 / (1 - missed[positions])
    members = {agent: np.isin(positions, own, assume_unique=True) for agent, own in drawn.items()}
    return Probes(positions, importance / importance.mean(), members, plan.shared)


def _draw_by_label(codes: np.ndarray, labels: int, count: int, noise: np.ndarray, agent: str) -> tuple[np.ndarray, np.ndarray]:
    """(positions drawn, inclusion probability of every sample) of one agent: count / L probes of each of the L labels that the
    pool holds; what does not divide goes one each to the labels with the most samples."""
    sizes = np.bincount(codes, minlength=labels)
    present = np.flatnonzero(sizes)
    if count < len(present):
        raise ValueError(
            f"agent {agent!r} has {count} probes for {len(present)} labels in the pool; "
            f"set at least {len(present)} probes per agent"
        )
    quota = np.zeros(labels, dtype=np.int64)
    quota[present] = count // len(present)
    by_size = present[np.argsort(-sizes[present], kind="stable")]
    quota[by_size[: count % len(present)]] += 1
    quota = np.minimum(quota, sizes)
    drawn = []
    for label in present:
        of_label = np.flatnonzero(codes == label)
        if quota[label] < len(of_label):  # hashes of different ids differ, so the smallest are a definite set
            of_label = of_label[np.argpartition(noise[of_label], quota[label])[: quota[label]]]
        drawn.append(of_label)
    inclusion = np.divide(quota, sizes, out=np.zeros(labels), where=sizes > 0)
    return np.concatenate(drawn), inclusion[codes]
