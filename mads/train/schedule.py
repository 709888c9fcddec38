"""Learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, schedule) -> float:
    """Rate of optimizer step `step` (0-based) of `steps`.

    schedule: a ScheduleConfig: `constant`; `cosine` to min_ratio * peak; `wsd` (warm-up, stable, linear decay over the last
    decay_fraction of the steps, Hu et al. 2024). All warm up linearly over `warmup_steps`, reaching the peak at its last step.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    if schedule.name == "cosine":
        progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
        return peak * (schedule.min_ratio + (1 - schedule.min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
    if schedule.name == "wsd":
        decay_steps = max(1, round(schedule.decay_fraction * steps))
        progress = max(0.0, (step - (steps - decay_steps)) / decay_steps)  # the final rate is that after the last step
        return peak * (1 - (1 - schedule.min_ratio) * min(1.0, progress))
    raise ValueError(f"schedule.name={schedule.name!r} is not one of constant, cosine, wsd")
