"""The selections that a user can name: what each needs from a round, and how it decides.

A strategy holds settings and no state. It is built from the selection's config (mads.config.schema), read by attribute only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mads.agents.rules import LearningRule, MadsRule, PaperRule
from mads.console.collaborate import AdditiveCollaboration, Collaboration, MultiplicativeCollaboration
from mads.console.decide import Candidates, Decision, select_gumbel, select_random, select_stratified, select_top_k
from mads.reward.probes import PerAgentProbes, ProbePlan, SharedProbes


@dataclass(frozen=True)
class Learning:
    """What a selection with agents adds to one without: probes, the agents' rule, and how theta follows."""

    probes: ProbePlan
    rule: LearningRule
    collaboration: Collaboration


@dataclass(frozen=True)
class Round:
    """What a decision may depend on.

    scores: float64 [A, n], agents in the console's order, None in rounds without scoring
    codes: attribute -> int codes [n]; labels: attribute -> names
    attributes: the agents' attributes, in the console's order
    """

    number: int
    seed: int
    budget: int
    candidates: Candidates
    scores: np.ndarray | None
    theta: np.ndarray
    agents: Sequence[str]
    attributes: Sequence[str]
    codes: Callable[[str], np.ndarray]
    labels: Callable[[str], Sequence[str]]


class Strategy(Protocol):
    """A selection: whether a round needs rewards, and which samples it takes."""

    name: str
    learning: Learning | None  # None: no agents

    def needs_rewards(self, round_: int) -> bool:
        """Whether the round begins with a reward pass; only then are agents taught and the pool scored."""

    def select(self, inputs: Round) -> Decision: ...


@dataclass(frozen=True)
class RandomStrategy:
    """A random subset every round: the control."""

    name: str = "random"
    learning: Learning | None = None

    def needs_rewards(self, round_: int) -> bool:
        return False

    def select(self, inputs: Round) -> Decision:
        return select_random(inputs.candidates, inputs.seed, inputs.number, inputs.budget)


@dataclass(frozen=True)
class StratifiedStrategy:
    """shares "uniform": every label that the pool holds gets the same tokens; "natural": its share of the pool's tokens."""

    attribute: str
    shares: str
    name: str = "stratified"
    learning: Learning | None = None

    def __post_init__(self):
        if self.shares not in ("uniform", "natural"):
            raise ValueError(f"selection.shares={self.shares!r} is neither 'uniform' nor 'natural'")

    def needs_rewards(self, round_: int) -> bool:
        return False

    def select(self, inputs: Round) -> Decision:
        codes, labels = inputs.codes(self.attribute), inputs.labels(self.attribute)
        held = np.bincount(codes, weights=inputs.candidates.lengths, minlength=len(labels))
        shares = held if self.shares == "natural" else (held > 0).astype(np.float64)
        return select_stratified(inputs.candidates, codes, labels, shares, inputs.seed, inputs.number, inputs.budget)


@dataclass(frozen=True)
class PaperStrategy:
    """A random subset in round 0, then top-k by S (Eq. 4-8)."""

    learning: Learning
    use_decay: float
    name: str = "paper"

    def needs_rewards(self, round_: int) -> bool:
        return round_ > 0

    def select(self, inputs: Round) -> Decision:
        """Random while there are no scores, then the best by S."""
        if inputs.scores is None:
            return select_random(inputs.candidates, inputs.seed, inputs.number, inputs.budget)
        return select_top_k(
            inputs.candidates,
            inputs.scores,
            inputs.theta,
            inputs.agents,
            self.use_decay,
            inputs.seed,
            inputs.number,
            inputs.budget,
        )


@dataclass(frozen=True)
class MadsStrategy:
    """Warm-up on the pool's own mix, held exactly over the joint cells of all agents' labels; then Gumbel top-k without reuse."""

    learning: Learning
    temperature: float
    warmup_rounds: int
    name: str = "mads"

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"selection.temperature={self.temperature} must be positive; small values approach top-k")

    def needs_rewards(self, round_: int) -> bool:
        return round_ >= self.warmup_rounds

    def select(self, inputs: Round) -> Decision:
        """The warm-up while there are no scores, then drawn in proportion to exp(S / temperature)."""
        if inputs.scores is None:
            return self._warm_up(inputs)
        return select_gumbel(
            inputs.candidates,
            inputs.scores,
            inputs.theta,
            inputs.agents,
            self.temperature,
            inputs.seed,
            inputs.number,
            inputs.budget,
        )

    def _warm_up(self, inputs: Round) -> Decision:
        cells = np.zeros(len(inputs.candidates.ids), dtype=np.int64)
        for attribute in inputs.attributes:
            cells = cells * len(inputs.labels(attribute)) + inputs.codes(attribute)
        present, cells = np.unique(cells, return_inverse=True)
        names = [_cell_name(int(cell), inputs) for cell in present]
        shares = np.bincount(cells, weights=inputs.candidates.lengths)
        return select_stratified(inputs.candidates, cells, names, shares, inputs.seed, inputs.number, inputs.budget)


def _cell_name(cell: int, inputs: Round) -> str:
    parts = []
    for attribute in reversed(inputs.attributes):
        cell, code = divmod(cell, len(inputs.labels(attribute)))
        parts.append(inputs.labels(attribute)[code])
    return "/".join(reversed(parts))


def build_strategy(config: Any) -> Strategy:
    """The strategy of a selection config, chosen by `config.name`.

    Raises:
        ValueError: for a name that is not known, or settings out of range.
    """
    if config.name == "random":
        return RandomStrategy()
    if config.name == "stratified":
        return StratifiedStrategy(config.attribute, config.shares)
    if config.name == "paper":
        learning = Learning(
            PerAgentProbes(config.probes_per_agent), PaperRule(config.agent_rate), AdditiveCollaboration(config.theta_rate)
        )
        return PaperStrategy(learning, config.use_decay)
    if config.name == "mads":
        learning = Learning(
            SharedProbes(config.probes),
            MadsRule(config.agent_rate),
            MultiplicativeCollaboration(config.theta_rate, config.theta_floor),
        )
        return MadsStrategy(learning, config.temperature, config.warmup_rounds)
    raise ValueError(f"selection {config.name!r} is not one of random, stratified, paper, mads")
