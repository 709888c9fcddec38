"""The agent protocol and what agents learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mads.agents.rules import LearningRule


@dataclass
class LabelRecord:
    """One label of one agent in one round. Rewards are None where the round had none (warm-up, or no probe with this label)."""

    label: str
    weight: float
    reward_mean: float | None = None
    reward_se: float | None = None
    probes: int = 0
    probe_tokens: int = 0
    pool_share: float = 0.0
    chosen_share: float = 0.0


class AttributeView(Protocol):
    """What an agent may see of samples: their attributes and lengths, never their tokens. Implemented by mads.data.pool.

    Of some samples these are arrays. Of a whole pool they are columns (mads.data.columns) that are never joined in memory: `bind`
    reads them by slices, or a `view` of a slice at a time.
    """

    ids: np.ndarray  # int64 [n], ascending
    lengths: np.ndarray  # int32 [n], tokens

    def __len__(self) -> int: ...

    def codes(self, attribute: str) -> np.ndarray:
        """Label codes, uint16 [n]."""

    def labels(self, attribute: str) -> tuple[str, ...]: ...

    def view(self, positions: slice) -> AttributeView:
        """Some of a pool's samples; pools only."""

    def values(self, attribute: str) -> np.ndarray:
        """Continuous value, float32 [n]; DataError if the attribute has none."""


@dataclass(frozen=True)
class ProbeRewards:
    """The rewards of one round, equal on every rank.

    view: the probes' attributes, n probes in a fixed order
    rewards: float64 [n], derivative of the sample's mean token loss along v, on the round's scale; positive helps the references
    targets: int64 [n], number of targets behind each reward (its precision grows with it)
    importance: float64 [n], inverse inclusion weight, mean 1
    references: reference task -> mean token loss of its direction part; empty unless the selection has it measured
    chosen: the samples of the decision in use, over whose mix R_A is judged; None: before the first decision, over the pool
    """

    view: AttributeView
    rewards: np.ndarray
    targets: np.ndarray
    importance: np.ndarray
    references: Mapping[str, float] = field(default_factory=dict)
    chosen: AttributeView | None = None


class Agent(Protocol):
    """One view of the data. An agent is built by Hydra from its `_target_`; `bind` tells it the pool before the first round.
    `mads.agents.AgentBase` has everything but the scores.

    Agents are replicated: every rank holds one and updates it with the same rewards, so that each can score its own slice.

    attribute: probes are drawn per label of it, and decisions are recorded by its labels; known before `bind`
    labels: its label names; known after `bind`
    """

    name: str
    attribute: str
    labels: tuple[str, ...]

    def bind(self, view: AttributeView, rule: LearningRule) -> None:
        """See the whole pool's attributes once (start weights from the pool's shares, checks of attribute names), and learn by
        the selection's rule from now on."""

    def rebind(self, view: AttributeView) -> None:
        """The pool has grown: see the longer one, and keep what was learned. Labels may have been added behind those known."""

    def score(self, view: AttributeView) -> np.ndarray:
        """Score of each sample of a slice, float64 [n]. Pure: no state changes, no dependence on the slice's borders."""

    def learn(self, probes: ProbeRewards) -> float:
        """Update from one round of rewards; returns the agent's own reward R_A (Eq. 7), judged as the rule in use says."""

    def describe(self) -> list[LabelRecord]:
        """One record per label (weight, last reward mean, standard error, counts), for the decision record."""

    def state(self) -> dict[str, Any]:
        """JSON state for the checkpoint."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`. Raises ValueError when the state is of another pool or agent."""


@runtime_checkable
class HearsDecisions(Protocol):
    """What an agent may have beside: the console then tells it every decision."""

    def chosen(self, view: AttributeView) -> None:
        """The samples of the decision just made, the same on every rank; called after each round, with and without rewards."""
