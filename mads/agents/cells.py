"""What agents over joint cells have in common: a table of scores, one per cell of several attributes' labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mads.agents.agent import AgentBase
from mads.agents.base import AttributeView
from mads.agents.columns import cell_shares, joint_cells

MOST_CELLS = 1 << 16  # a score, and what was learned, is held for each


class CellAgent(AgentBase):
    """S(x) = table[cell(x)]. A subclass sets `table` in `start`, `grow` and `restored`, and whenever it learns.

    Args:
        attributes: the columns whose labels form the cells. Probes are drawn and decisions recorded by the first one's labels.

    After `bind`: sizes, the numbers of labels; cell_shares, float64 [cells], the cells' shares of the pool's tokens.
    """

    def __init__(self, attributes: Sequence[str], name: str | None = None):
        names = [attributes] if isinstance(attributes, str) else list(attributes)
        if not names or len(set(names)) != len(names) or not all(isinstance(a, str) for a in names):
            raise ValueError(f"attributes={attributes!r} must list one or several different attributes")
        super().__init__(names[0], name or "+".join(names))
        self.attributes = tuple(names)

    def start(self, view: AttributeView) -> None:
        self._survey(view)
        self.table = np.zeros(len(self.cell_shares))

    def grow(self, view: AttributeView, known: int) -> None:
        """Cells move when labels are added: what `memory` holds by cell moves with them, new cells hold 0."""
        before = self.sizes
        self._survey(view)
        for key in self.memory:
            setattr(self, key, moved(getattr(self, key), before, self.sizes))
        self.restored()

    def _survey(self, view: AttributeView) -> None:
        self.sizes = tuple(len(view.labels(a)) for a in self.attributes)
        if (cells := np.prod(self.sizes, dtype=np.float64)) > MOST_CELLS:
            raise ValueError(
                f"agent {self.name!r}: the labels of {list(self.attributes)} form {'x'.join(map(str, self.sizes))} = {cells:.0f} "
                f"joint cells, at most {MOST_CELLS} are held; use fewer attributes, or attributes with fewer labels"
            )
        self.cell_shares = cell_shares(view, self.attributes, self.sizes)

    def cells(self, view: AttributeView) -> np.ndarray:
        """Joint cell of each sample, int64 [n]."""
        return joint_cells(view, self.attributes, self.sizes)

    def score(self, view: AttributeView) -> np.ndarray:
        return self.table[self.cells(view)]

    def label_weights(self) -> np.ndarray:
        """Mean score of each label of the first attribute over the pool's tokens; 0 for a label without any."""
        scored = (self.cell_shares * self.table).reshape(self.sizes[0], -1).sum(1)
        return np.divide(scored, self.shares, out=np.zeros(self.sizes[0]), where=self.shares > 0)

    def load_state(self, state: dict) -> None:
        held = {key: len(values) for key, values in state.get("memory", {}).items()}
        if any(count != len(self.cell_shares) for count in held.values()):
            raise ValueError(
                f"the checkpoint's agent {self.name!r} holds {held} cells, this one {len(self.cell_shares)} cells of "
                f"{list(self.attributes)}; resume with the agents and the data of the checkpoint"
            )
        super().load_state(state)


def moved(values: np.ndarray, before: Sequence[int], after: Sequence[int]) -> np.ndarray:
    """A value per joint cell, for sizes that are as large or larger: labels are added behind those known, new cells hold 0."""
    grown = np.zeros(after, dtype=values.dtype)
    grown[tuple(slice(0, size) for size in before)] = values.reshape(before)
    return grown.reshape(-1)
