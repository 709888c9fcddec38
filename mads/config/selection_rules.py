"""Rules between the keys of one selection: what a rule or a selector takes, columns, bands and mixes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import OmegaConf

# Key that chooses -> its values -> the keys that only some of its values take, and those that this one does.
CHOOSES = {
    "collaboration": {"multiplicative": ("theta_rate", "theta_floor"), "additive": ("theta_rate",), "fixed": ("theta",)},
    "selector": {
        "auto": ("temperature", "share_floor"),
        "shares": ("temperature", "share_floor"),
        "gumbel": ("temperature", "descending"),
        "top_k": ("descending",),
        "proportional": ("descending",),
        "random": (),
    },
}
# Selectors of one kind of selection only, by a key that it has: a band to be random in, cells to give shares to.
ONLY = {"random": "band", "auto": "share_floor", "shares": "share_floor"}


def selection_rules(config: Any, overrides: Sequence[str]) -> Iterator[str]:
    """What is wrong, a line each. overrides: as given; one that names a key which the chosen value ignores is an error."""
    s = config.selection
    yield from _ignored(s, overrides)
    yield from _floor_without_shares(config)
    if s.name == "column":
        yield from _column(config)
    if s.name == "mix":
        yield from _mix(s)
    if s.get("collaboration") == "fixed" and s.theta:
        agents, named = sorted(config.agents.members), sorted(s.theta)
        if agents != named:
            yield f"selection.theta names {named}, the agents are {agents}; give each of them a weight (0 is one)"
        yield from _weights("selection.theta", s.theta)


def _ignored(s: Any, overrides: Sequence[str]) -> Iterator[str]:
    """A key that the chosen value does not take is an error if it was given, or is not at its default."""
    given = {o.lstrip("+~").split("=", 1)[0] for o in overrides}
    defaults = {f.name: f for f in dataclasses.fields(OmegaConf.get_type(s))}
    for chooser, values in CHOOSES.items():
        chosen = s.get(chooser)
        if chosen is None:
            continue
        allowed = [v for v in values if ONLY.get(v, "name") in s]
        if chosen not in allowed:
            yield f"selection.{chooser}={chosen!r} is not one of {', '.join(allowed)}"
            continue
        for key in sorted({key for keys in values.values() for key in keys} - set(values[chosen])):
            if key not in defaults:
                continue
            default = defaults[key].default if defaults[key].default is not dataclasses.MISSING else {}
            named = any(g == f"selection.{key}" or g.startswith(f"selection.{key}.") for g in given)
            if (named and s[key] is not None) or s[key] != default:
                takers = " or ".join(v for v in allowed if key in values[v])
                yield f"selection.{key}={s[key]}: selection.{chooser}={chosen} does not use it; leave it out, or choose {takers}"


def _floor_without_shares(config: Any) -> Iterator[str]:
    """selector=auto draws by Gumbel noise in some cases, and then no cell has a floor."""
    s = config.selection
    if s.get("selector") != "auto" or "share_floor" not in s or s.share_floor == OmegaConf.get_type(s).share_floor:
        return
    limits = [key for key, holds in {"selection.bounds": s.bounds, "selection.unit=shard": s.unit == "shard"}.items() if holds]
    curves = [f"agents.members.{name}.prior" for name, agent in config.agents.members.items() if _ranks(agent)]
    if limits or curves:
        with_floor = "" if limits else ", or set selection.selector=shares"
        yield (
            f"selection.share_floor={s.share_floor}: selection.selector=auto is gumbel with {' and '.join(limits + curves)}, "
            f"which does not use it; leave it out{with_floor}"
        )


def _ranks(agent: Any) -> bool:
    return str(agent.get("_target_")).endswith(".ContinuousAgent") and bool(agent.get("prior"))


def _column(config: Any) -> Iterator[str]:
    s, attributes = config.selection, sorted(config.data.attributes)
    if attributes and s.column not in attributes:
        yield f"selection.column={s.column!r} is not one of the attributes {attributes}"
    if s.selector == "gumbel" and s.temperature is None:
        yield "selection.selector=gumbel needs selection.temperature, in units of the column's values"
    if s.selector == "random" and not s.band:
        yield "selection.selector=random chooses inside of selection.band=[low, high]; without one choose selection=random"
    if s.band and not (len(s.band) == 2 and 0 <= s.band[0] < s.band[1] <= 1):
        yield f"selection.band={list(s.band)} must be two quantiles [low, high] with 0 <= low < high <= 1"
    if s.band and s.unit == "shard":
        yield "selection.band holds for single samples' values; use selection.unit=sample, or leave the band out"


def _mix(s: Any) -> Iterator[str]:
    if not s.shares:
        yield f"selection=mix needs shares of {s.attribute}'s labels, for example 'selection.shares={{news: 0.4, books: 0.6}}'"
    else:
        yield from _weights("selection.shares", s.shares)
    if s.unit == "shard":
        yield "selection=mix fixes the shares of single samples' labels; use selection.unit=sample, or another selection"
    if s.bounds:
        yield "selection=mix has fixed shares already; leave selection.bounds out, or choose another selection"


def _weights(key: str, weights: Any) -> Iterator[str]:
    values = [w for w in weights.values() if w is not None]
    if len(values) < len(weights) or not all(math.isfinite(w) and w >= 0 for w in values) or not sum(values) > 0:
        yield f"{key}={dict(weights)} must be numbers that are not negative, and not all 0"
