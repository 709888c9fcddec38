"""How long the rounds of a run are."""

from __future__ import annotations

from typing import Any


def round_steps(selection: Any, round_: int) -> int:
    """Optimizer steps of a round: with `first_interval` f, decisions fall on the steps f, 2 f, 4 f, ... for as long as that adds
    less than `interval` steps, and every `interval` steps from there on; without it every `interval` steps.

    Args:
        selection: a SelectionConfig.
        round_: from 0.
    """
    if selection.first_interval is None:
        return selection.interval
    return min(selection.interval, selection.first_interval << max(0, round_ - 1))
