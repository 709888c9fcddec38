"""Whether what a configuration named is an agent, said before a run starts rather than in its first round."""

from __future__ import annotations

import inspect
import math
from typing import Any

# Method -> arguments that the console gives it. `chosen` is optional.
PROTOCOL = {
    "bind": ("view", "rule"),
    "rebind": ("view",),
    "score": ("view",),
    "learn": ("probes",),
    "describe": (),
    "state": (),
    "load_state": ("state",),
    "chosen": ("view",),
}
OPTIONAL = ("chosen",)


def check_agent(agent: Any, where: str) -> Any:
    """The agent as it is.

    Args:
        where: its key in the configuration, for the message.

    Raises:
        ValueError: a method is absent or takes other arguments, or `name` or `attribute` is no text. All faults in one message.
    """
    kind, faults = type(agent).__name__, []
    for method, arguments in PROTOCOL.items():
        call = f"{method}({', '.join(arguments)})"
        function = getattr(agent, method, None)
        if function is None and method in OPTIONAL:
            continue
        if not callable(function):
            faults.append(f"{call} is absent")
            continue
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError as error:
            faults.append(f"{call} cannot be called, it is {method}{inspect.signature(function)}: {error}")
    for field in ("name", "attribute"):
        if not isinstance(value := getattr(agent, field, None), str):
            faults.append(f"{field} is {value!r}, not a text, after its constructor")
    if faults:
        raise ValueError(f"{where}: {kind} is no agent: {'; '.join(faults)}. mads.agents.AgentBase has all of it but score(view)")
    return agent


def checked_reward(agent: Any, reward: Any) -> float:
    """What `learn` returned, as a float.

    Raises:
        ValueError: if it is no finite number.
    """
    try:
        value = float(reward)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"agent {agent.name!r}: {type(agent).__name__}.learn(probes) returned {reward!r}; it must return the agent's reward "
            "R_A, a finite number"
        )
    return value
