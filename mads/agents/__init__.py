from mads.agents.label import LabelAgent

__all__ = ["LabelAgent"]
