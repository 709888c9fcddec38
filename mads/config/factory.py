"""The one place that turns `_target_` into an object.

`_target_` names a class that Python can import. What is built is of the kind that its key asks for, so that a configuration from
others (a run folder that `mads explain` opens) calls nothing but such a class, with plain values.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from mads.config.compose import ConfigError

# Key -> methods of what may be built there.
KINDS = {
    "agents.members": ("score", "learn", "load_state"),
    "data.attributes": ("fit", "label", "load_state"),
    "data.source": ("read", "describe"),
    "data.references": ("examples", "describe"),
}
_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def build(node: Mapping[str, Any], where: str, **extra: Any) -> Any:
    """Instantiate a config node.

    Args:
        where: the node's key, for the error message.
        extra: further constructor arguments, from code.

    Raises:
        ConfigError: if the node has no `_target_`, the class does not exist or is none for this key, a key is not in its
            signature, a value holds one of Hydra's own keys, or the class refuses a value (its ValueError's message is kept).
    """
    if "_target_" not in node:
        raise ConfigError(f"{where} has no _target_: name the class to build, for example mads.agents.LabelAgent")
    for key in _own_keys_of_hydra(node):
        if key != "_target_":
            raise ConfigError(f"{where}.{key} is not read: only _target_ of {where} itself names something to build")
    try:
        _check_kind(node["_target_"], where)
        return instantiate(node, _convert_="all", **extra)
    except InstantiationException as error:
        raise ConfigError(f"{where}: {_reason(error, node['_target_'])}") from error


def _own_keys_of_hydra(value: Any, where: str = "") -> Iterator[str]:
    """Dotted keys like `_target_` and `_args_`, at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            path = f"{where}.{key}" if where else f"{key}"
            if str(key).startswith("_") and str(key).endswith("_"):
                yield path
            yield from _own_keys_of_hydra(inner, path)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, inner in enumerate(value):
            yield from _own_keys_of_hydra(inner, f"{where}[{index}]")


def _check_kind(target: str, where: str) -> None:
    """Raises ConfigError for what is no class, or one without the methods that its key asks for."""
    try:
        built = get_object(target)
    except Exception:  # instantiate says why
        return
    methods = next(methods for prefix, methods in KINDS.items() if where == prefix or where.startswith(prefix + "."))
    absent = [name for name in methods if not callable(getattr(built, name, None))]
    if not inspect.isclass(built) or absent:
        what = f"has no {absent[0]}" if inspect.isclass(built) else "is no class"
        raise ConfigError(f"{where}: _target_={target} {what}; a class with {', '.join(methods)} belongs there")


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
