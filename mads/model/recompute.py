"""Activations that backward computes again instead of keeping them (Chen et al. 2016, arXiv 1604.06174; which ones are worth it:
Korthikanti et al. 2022, arXiv 2205.05198, section 5)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(enabled: bool, function: Callable[..., torch.Tensor], *arguments) -> torch.Tensor:
    """function(*arguments); if enabled, backward calls it once more instead of keeping what its operations save.

    There is no random state to restore: masks are keyed (mads.tensor.dropout). The check that both passes save tensors of the
    same shapes is off, because ZeRO 3 shows a parameter of size 0 at the one time and gathered at the other.
    """
    if not enabled or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, determinism_check="none")
