"""Rules of the group `logging` that span several keys."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence


def logging_rules(config, overrides: Sequence[str] = ()) -> Iterator[str]:
    """What is wrong with how a run reports, one message each."""
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
    elif window.start + window.steps - 1 > end:
        yield (
            f"logging.profile={{start: {window.start}, steps: {window.steps}}} reaches step {window.start + window.steps - 1}, "
            f"the run ends at step {end}; start sooner or record fewer steps"
        )
