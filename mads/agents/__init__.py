"""Agents: views of the data that score every sample and learn from rewards."""

from mads.agents.label import LabelAgent

__all__ = ["LabelAgent"]
