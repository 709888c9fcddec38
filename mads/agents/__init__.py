"""Agents: views of the data that score every sample and learn from rewards."""

from mads.agents.agent import AgentBase
from mads.agents.continuous import ContinuousAgent
from mads.agents.influence import InfluenceAgent
from mads.agents.joint import JointCellAgent
from mads.agents.label import LabelAgent
from mads.agents.novelty import NoveltyAgent

__all__ = ["AgentBase", "ContinuousAgent", "InfluenceAgent", "JointCellAgent", "LabelAgent", "NoveltyAgent"]
