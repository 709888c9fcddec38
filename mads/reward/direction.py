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

_SAMPLED = 1 << 16  # coordinates that are sorted to say how concentrated a direction is


@dataclass(frozen=True)
class Direction:
    """v, of unit Euclidean norm, and what it is made of.

    norm: norm of P grad L_ref before it was made one (rewards are derivatives along the unit vector).
    shares: parameter group -> share of |v|^2.
    top_share: share of |v|^2 in the largest 1% of this rank's coordinates, of a large model every k-th of them.
    """

    vector: Vector
    norm: float
    shares: dict[str, float]
    top_share: float


def preconditioned(
    gradient: Vector,
    moment: Callable[[str], torch.Tensor],
    steps: int,
    sizes: dict[str, int],
    beta2: float,
    eps: float,
    damping: float,
    totals: Callable[[dict[str, torch.Tensor]], dict[str, float]],
) -> Vector:
    """P * gradient, piece by piece and in place: a large model has memory for one such vector, not for several.

    Args:
        gradient: g_ref, fp32; overwritten by the result.
        moment: name -> Adam's exp_avg_sq as stored (biased), fp32; asked for twice, left unchanged.
        steps: optimizer steps behind the moment.
        sizes: logical number of elements of every parameter (pieces may be smaller).
        totals: mads.train.interface.RewardModel.totals.
    """
    # One more step of the moment with g_ref as its gradient, then Adam's bias correction for steps + 1.
    correction = 1.0 - beta2 ** (steps + 1)

    def corrected(name: str) -> torch.Tensor:
        return (beta2 * moment(name)).add_(gradient[name].square().mul_(1.0 - beta2)).div_(correction)

    sums = totals({name: corrected(name).sum(dtype=torch.float64) for name in gradient})
    for name, piece in gradient.items():
        rms = math.sqrt(sums[name] / sizes[name])
        piece.div_(corrected(name).sqrt_().add_(eps + damping * rms))
    return gradient


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


def make_direction(vector: Vector, totals: Callable[[dict[str, torch.Tensor]], dict[str, float]]) -> Direction:
    """Normalise a vector, in place, and measure where its length sits.

    Raises:
        ValueError: if it is zero or not finite.
    """
    squares = totals({name: piece.double().square().sum() for name, piece in vector.items()})
    total = sum(squares.values())
    if not math.isfinite(total) or total <= 0.0:
        raise ValueError(f"the reward direction has squared norm {total}: the reference gradient is zero or not finite")
    norm = math.sqrt(total)
    shares: dict[str, float] = {}
    for name, square in squares.items():
        shares[group_of(name)] = shares.get(group_of(name), 0.0) + square / total
    every = 1 + sum(piece.numel() for piece in vector.values()) // _SAMPLED
    flat = torch.cat([piece.flatten()[::every].square() for piece in vector.values()])
    top = float(flat.topk(max(1, flat.numel() // 100)).values.sum() / flat.sum().clamp_min(1e-300))
    for piece in vector.values():
        piece.div_(norm)
    return Direction(vector, norm, shares, top)
