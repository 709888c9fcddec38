"""The reward direction v = P grad L_ref (docs/method.md).

P is Adam's own preconditioner, so v is the step that the optimizer would take on the references. Weights that the training data
never touched have a second moment of 0 and would dominate v: the reference gradient itself joins the moment, and the
denominator is damped by a share of the tensor's root mean square:

    v_hat = beta2' v + (1 - beta2') g_ref^2          (bias-corrected)
    P     = 1 / (sqrt(v_hat) + eps + delta * rms),   rms = sqrt(mean v_hat) of the tensor
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mads.train.interface import Vector


@dataclass(frozen=True)
class Direction:
    """v, of unit Euclidean norm, and what it is made of.

    norm: norm of P grad L_ref before it was made one (rewards are derivatives along the unit vector).
    shares: parameter group -> share of |v|^2.
    top_share: share of |v|^2 in the largest 1% of this rank's coordinates.
    """

    vector: Vector
    norm: float
    shares: dict[str, float]
    top_share: float


def preconditioned(
    gradient: Vector,
    moment: Vector,
    steps: int,
    sizes: dict[str, int],
    beta2: float,
    eps: float,
    damping: float,
    owned_sum: Callable[[torch.Tensor], torch.Tensor],
) -> Vector:
    """P * gradient, piece by piece.

    Args:
        gradient, moment: g_ref and Adam's exp_avg_sq as stored (biased), fp32.
        steps: optimizer steps behind the moment.
        sizes: logical number of elements of every parameter (pieces may be smaller).
    """
    # One more step of the moment with g_ref as its gradient, then Adam's bias correction for steps + 1.
    correction = 1.0 - beta2 ** (steps + 1)
    moments = {n: (beta2 * moment[n] + (1.0 - beta2) * g.square()) / correction for n, g in gradient.items()}
    names = list(gradient)
    totals = owned_sum(torch.stack([moments[n].sum(dtype=torch.float64) for n in names]))
    result = {}
    for name, total in zip(names, totals.tolist()):
        rms = math.sqrt(total / sizes[name])
        denominator = moments[name].sqrt_().add_(eps + damping * rms)
        result[name] = gradient[name] / denominator
    return result


def group_of(name: str) -> str:
    """Parameter group for diagnostics: embedding, attention, mlp, norm or head."""
    for key, group in (
        ("embed", "embedding"),
        ("norm", "norm"),
        ("attention", "attention"),
        ("attn", "attention"),
        ("mlp", "mlp"),
        ("feed_forward", "mlp"),
        ("head", "head"),
    ):
        if key in name:
            return group
    return "other"


def make_direction(vector: Vector, owned_sum: Callable[[torch.Tensor], torch.Tensor]) -> Direction:
    """Normalise a vector and measure where its length sits.

    Raises:
        ValueError: if it is zero or not finite.
    """
    names = list(vector)
    squares = owned_sum(torch.stack([vector[n].double().square().sum() for n in names])).tolist()
    total = sum(squares)
    if not math.isfinite(total) or total <= 0.0:
        raise ValueError(f"the reward direction has squared norm {total}: the reference gradient is zero or not finite")
    norm = math.sqrt(total)
    shares: dict[str, float] = {}
    for name, square in zip(names, squares):
        shares[group_of(name)] = shares.get(group_of(name), 0.0) + square / total
    flat = torch.cat([vector[n].flatten().square() for n in names])
    top = float(flat.topk(max(1, flat.numel() // 100)).values.sum() / flat.sum().clamp_min(1e-300))
    return Direction({n: v / norm for n, v in vector.items()}, norm, shares, top)
