"""An agent as a user would write one, outside the package: it prefers long samples and never learns."""

from mads.agents import AgentBase
from mads.agents.columns import pieces


class LengthAgent(AgentBase):
    memory = ("longest",)

    def start(self, view):
        self.longest = max(int(part.lengths.max()) for part in pieces(view))

    def score(self, view):
        return view.lengths / self.longest * 100.0
