"""Agents from the configuration's `agents.members`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mads.agents.base import Agent
from mads.agents.check import check_agent
from mads.config.compose import ConfigError
from mads.config.factory import build


def build_agent(name: str, node: Mapping[str, Any]) -> Agent:
    """The agent `agents.members.NAME`, not bound to a pool yet.

    Raises:
        ConfigError: its class cannot be loaded, does not take these keys, or is no agent.
    """
    where = f"agents.members.{name}"
    agent = build(node, where, name=name)
    try:
        return check_agent(agent, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error
