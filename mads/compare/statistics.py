"""Statistics of a few paired runs: means, t intervals, Holm's correction, and where a curve first reaches a value.

Seeds are the only repetitions. Differences are taken within a seed, because strategies share its initialisation and packing; with
one seed there is no interval, and none is made up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
TERMS = 1000  # of the continued fraction; it needs some dozens
TINY = 1e-300


def beta_fraction(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (NIST DLMF 8.17.22, modified Lentz)."""
    if not 0 < x < 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on one side only
        return 1.0 - beta_fraction(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1), TINY)
    value = d
    for m in range(1, TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = value
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d or TINY)
            c = 1.0 + term / c or TINY
            value *= c * d
        if abs(value - before) <= 1e-16 * abs(value):
            break
    return front * value


def t_tail(t: float, freedom: float) -> float:
    """P(|T| >= |t|) of Student's t with `freedom` degrees of freedom."""
    if math.isinf(t):
        return 0.0
    return beta_fraction(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(confidence: float, freedom: float) -> float:
    """t with P(|T| <= t) = confidence, by bisection."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - confidence else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds. With one seed the standard error, the half-width of the 95% t interval and p are None.

    p: two-sided, of the mean being 0; of interest for differences only
    """

    n: int
    mean: float
    se: float | None = None
    half: float | None = None
    p: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean, standard error (n - 1), 95% t interval and p of some seeds' values; None of no values."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean)
    se = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    p = t_tail(mean / se, n - 1) if se else (1.0 if mean == 0 else 0.0)
    return Estimate(n, mean, se, t_quantile(CONFIDENCE, n - 1) * se, p)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """ours - theirs over the seeds that both have."""
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p values (Holm 1979): the k-th smallest of m times m - k + 1, never below an earlier one."""
    adjusted: dict[str, float] = {}
    running = 0.0
    for k, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, (len(p) - k) * value))
        adjusted[name] = running
    return adjusted


@dataclass(frozen=True)
class Reach:
    """Where a falling curve first is at or below a level.

    kind: "at" (place is exact, between two points), "before" (already at the first point: place is an upper bound), "never"
    """

    kind: str
    place: float | None = None


def reach(points: Sequence[tuple[float, float]], level: float) -> Reach:
    """First place where the straight lines between (x, y) points, in the order of x, come down to `level`; never extrapolated.

    Raises:
        ValueError: for no points.
    """
    if not points:
        raise ValueError("a curve without points reaches nothing")
    if points[0][1] <= level:
        return Reach("before" if len(points) > 1 or points[0][1] < level else "at", points[0][0])
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if y1 <= level:
            return Reach("at", x0 + (x1 - x0) * (y0 - level) / (y0 - y1))
    return Reach("never")


def value_at(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """The curve's value at x, between its points; None beyond them."""
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * ((x - x0) / (x1 - x0)) if x1 > x0 else y1
    exact = [y for px, y in points if px == x]
    return exact[-1] if exact else None


@dataclass(frozen=True)
class ReachOverSeeds:
    """`reach` by seed; `place` is there only if every seed's curve crosses between two points, otherwise the counts say why."""

    by_seed: dict[int, Reach]
    place: Estimate | None

    def count(self, kind: str) -> int:
        """Seeds of a kind: at, before or never."""
        return sum(r.kind == kind for r in self.by_seed.values())


def reach_over_seeds(curves: Mapping[int, Sequence[tuple[float, float]]], levels: Mapping[int, float]) -> ReachOverSeeds | None:
    """Each seed's curve against the level of the same seed; None without a common seed."""
    found = {seed: reach(curves[seed], levels[seed]) for seed in sorted(curves.keys() & levels.keys()) if curves[seed]}
    if not found:
        return None
    crossed = [r.place for r in found.values() if r.kind == "at"]
    return ReachOverSeeds(found, estimate(crossed) if len(crossed) == len(found) else None)
