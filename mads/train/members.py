"""Agents from the configuration's `agents.members`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mads.agents.base import Agent, AttributeView
from mads.agents.check import check_agent
from mads.agents.label import LabelAgent
from mads.config.compose import ConfigError
from mads.config.factory import build


def build_agent(name: str, node: Mapping[str, Any], pool: AttributeView) -> Agent:
    """The agent `agents.members.NAME`, not bound to the pool yet.

    Raises:
        ConfigError: its class cannot be loaded, does not take these keys, or is no agent; or its prior is for other labels.
    """
    where = f"agents.members.{name}"
    agent = build(node, where, name=name)
    try:
        check_agent(agent, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if isinstance(agent, LabelAgent):
        try:
            agent.check_labels(pool.labels(agent.attribute))
        except ValueError as error:
            raise ConfigError(f"{where}.{error}") from error
    return agent
