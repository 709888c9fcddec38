"""The one place that turns `_target_` into an object."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from mads.config.compose import ConfigError

_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def build(node: Mapping[str, Any], where: str, **extra: Any) -> Any:
    """Instantiate a config node.

    Args:
        where: the node's key, for the error message.
        extra: further constructor arguments, from code.

    Raises:
        ConfigError: if the node has no `_target_`, the class does not exist, a key is not in its signature, or the class
            refuses a value (its ValueError's message is kept).
    """
    if "_target_" not in node:
        raise ConfigError(f"{where} has no _target_: name the class to build, for example mads.agents.LabelAgent")
    try:
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        raise ConfigError(f"{where}: {_reason(error, node['_target_'])}") from error


def _reason(error: InstantiationException, target: str) -> str:
    """What a reader of the configuration needs of Hydra's report."""
    cause = error.__cause__
    if isinstance(cause, ValueError):
        return str(cause)
    if cause is not None and not isinstance(cause, TypeError):
        return f"_target_={target} cannot be loaded: {cause}"
    return f"_target_={target}: {cause or error}{_keys(target)}"


def _keys(target: str) -> str:
    """The keys that a class takes: its constructor's arguments and, where that passes on `**rest`, those of its bases'."""
    try:
        built = get_object(target)
        kinds = [c for c in inspect.getmro(built) if "__init__" in vars(c)] if inspect.isclass(built) else [built]
        taken: dict[str, inspect.Parameter] = {}
        for kind in kinds:
            parameters = inspect.signature(vars(kind)["__init__"] if inspect.isclass(kind) else kind).parameters
            taken = {n: p for n, p in parameters.items() if p.kind not in _STARRED and n != "self"} | taken
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
                break
    except (ValueError, TypeError, ImportError, AttributeError):  # built-in types have no signature
        return ""
    return "; it takes " + ", ".join(f"{n} (required)" if p.default is p.empty else n for n, p in taken.items())


def build_all(nodes: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Build every entry, by name, in the order of the configuration."""
    return {name: build(node, f"{where}.{name}") for name, node in nodes.items()}
