"""An agent as a user would write one, outside the package: it prefers long samples and never learns."""

import numpy as np

from mads.agents.base import LabelRecord


class LengthAgent:
    def __init__(self, name, attribute):
        self.name, self.attribute = name, attribute

    def bind(self, view, rule):
        self.labels = tuple(view.labels(self.attribute))
        pieces = [view.lengths[start : start + 4096] for start in range(0, len(view), 4096)]
        self.longest = max(int(piece.max()) for piece in pieces)

    def rebind(self, view):
        self.bind(view, None)

    def score(self, view):
        return view.lengths / self.longest * 100.0

    def learn(self, probes):
        return float(np.corrcoef(probes.rewards, probes.view.lengths)[0, 1])

    def describe(self):
        return [LabelRecord(label, 0.0) for label in self.labels]

    def state(self):
        return {"longest": self.longest}

    def load_state(self, state):
        if state["longest"] != self.longest:
            raise ValueError("of another pool")
