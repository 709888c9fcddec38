"""An agent against redundancy: what was chosen much already, for its share of the pool, scores low."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mads.agents.base import AttributeView
from mads.agents.cells import CellAgent


class NoveltyAgent(CellAgent):
    """S(x) = -strength log((1 - prior) q_c / p_c + prior), c the sample's cell.

    p_c is the cell's share of the pool's tokens, q_c its share of the tokens chosen so far, in which a decision that lies k
    decisions back counts decay^k. Scores are between strength log(1 / prior), never chosen, and 0 where q_c = p_c, and below.
    Rewards change nothing in the scores; they say, through R_A, how far the console trusts the agent.

    Args:
        attributes: the labels, or joint cells of labels, inside which samples repeat each other.
        strength: in standard deviations of a round's rewards under selection=mads.
        decay: 1 remembers all decisions alike, 0 the last one only.
        prior: in (0, 1]: a mix that the choices are blended with, that of the pool.
    """

    memory = ("taken",)

    def __init__(
        self,
        attributes: Sequence[str],
        name: str | None = None,
        strength: float = 1.0,
        decay: float = 0.9,
        prior: float = 0.1,
    ):
        super().__init__(attributes, name)
        if not (0 < strength < np.inf and 0 <= decay <= 1 and 0 < prior <= 1):
            raise ValueError(
                f"strength={strength} must be positive and finite, decay={decay} lie in [0, 1] and prior={prior} in (0, 1]"
            )
        self.strength, self.decay, self.prior = float(strength), float(decay), float(prior)

    def start(self, view: AttributeView) -> None:
        super().start(view)
        self.taken = np.zeros(len(self.cell_shares))  # tokens, decayed

    def chosen(self, view: AttributeView) -> None:
        """Count a decision's tokens."""
        tokens = np.bincount(self.cells(view), weights=view.lengths, minlength=len(self.taken))
        self.taken = self.decay * self.taken + tokens
        self.restored()

    def restored(self) -> None:
        total = self.taken.sum()
        if total <= 0:
            self.table = np.zeros(len(self.taken))
            return
        share = np.divide(self.taken / total, self.cell_shares, out=np.ones(len(self.taken)), where=self.cell_shares > 0)
        self.table = -self.strength * np.log((1 - self.prior) * share + self.prior)
