"""Rules of the group `logging` that span several keys."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence


def logging_rules(config, world_size: int | None = None, overrides: Sequence[str] = ()) -> Iterator[str]:
    """What is wrong with how a run reports, one message each. world_size: None: not known yet."""
    if config.logging.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        yield "logging.tensorboard=true needs the package tensorboardX: pip install 'mads[tensorboard]', or leave it out"
    if config.logging.wandb == "disabled":
        for override in overrides:
            if override.lstrip("+~").startswith("logging.project="):
                yield f"{override}: logging.wandb=disabled does not use it; choose logging=wandb_offline, or leave it out"
    window, end = config.logging.profile, config.train.stop_at or config.train.steps
    if window.start is None:
        if given := [o for o in overrides if o.lstrip("+~").startswith("logging.profile")]:
            yield f"{given[0]}: without logging.profile.start nothing is profiled; give it a step, or leave this out"
        return
    last = window.start + window.steps - 1
    if last > end:
        yield (
            f"logging.profile={{start: {window.start}, steps: {window.steps}}} reaches step {last}, the run ends at step {end}; "
            "start sooner or record fewer steps"
        )
    ranks = list(window.ranks)
    if not ranks or min(ranks) < 0 or len(set(ranks)) < len(ranks) or (world_size and max(ranks) >= world_size):
        there = f"0 to {world_size - 1}" if world_size else "0 and up"
        yield f"logging.profile.ranks={ranks} must be different ranks of {there}, at least one"
