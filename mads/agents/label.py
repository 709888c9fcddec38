"""An agent that sees one categorical attribute and holds one weight per label."""

from __future__ import annotations

import numpy as np

from mads.agents.agent import AgentBase
from mads.agents.base import AttributeView, ProbeRewards
from mads.agents.columns import label_codes


class LabelAgent(AgentBase):
    """Memory of the paper's agents: S_A(x) = w_{label(x)}. Start weights are the pool's own token shares.

    Args:
        attribute: the column that the agent sees.
        name: its name in records; the attribute's if not given.
    """

    def start(self, view: AttributeView) -> None:
        self.weights = self.rule.start(self.shares)

    def grow(self, view: AttributeView, known: int) -> None:
        """New labels start as `bind` starts them."""
        self.weights[known:] = self.rule.start(self.shares)[known:]

    def score(self, view: AttributeView) -> np.ndarray:
        return self.weights[label_codes(view, self.attribute)]

    def learn(self, probes: ProbeRewards) -> float:
        """By the rule's own step, which judges and moves the labels' weights (Eq. 4, 5 and 7)."""
        self.observe(probes)
        self.weights, reward = self.rule.step(self.weights, self.shares, self.statistics)
        return reward
