"""The comparison's drawings: learning curves with bands, differences with intervals, places where a value is reached."""

from __future__ import annotations

import math

import numpy as np

from mads.compare.statistics import ReachOverSeeds, estimate
from mads.compare.summary import Comparison, Metric, reach_text
from mads.report.bars import Bar, bar_chart, interval_chart
from mads.report.lines import LineChart, Series
from mads.report.scale import compact
from mads.report.scatter import Dot, scatter_chart


def nats(value: float) -> str:
    """A loss for reading."""
    return f"{value:.3f}"


def tokens(value: float) -> str:
    """A number of tokens for reading."""
    return f"{compact(value)} tokens"


def mean_curve(name: str, curves: list[list[tuple[float, float]]], style: int, start: float = 0.0) -> Series:
    """The mean over seeds, with a band of one standard error to both sides where there are several.

    Seeds are evaluated at equal steps whose token counts differ a little: all are read at the first one's, by interpolation.

    start: tokens from which on it is drawn
    """
    curves = [c for c in curves if c]
    if not curves:
        return Series(name, [], style)
    end = min(c[-1][0] for c in curves)
    grid = [x for x, _ in curves[0] if start <= x < end] + [end]
    values = [[float(np.interp(x, *zip(*c))) for c in curves] for x in grid]
    means = [estimate(v) for v in values]
    band = [(x, m.mean - m.se, m.mean + m.se) for x, m in zip(grid, means) if m.se is not None]
    return Series(name, [(x, m.mean) for x, m in zip(grid, means)], style, band)


def trunk_curves(comparison: Comparison, strategy: str, group: str, name: str | None) -> list[list[tuple[float, float]]]:
    """(tokens, loss) of each seed's trunk; name None: the mean over the group's names."""
    curves = []
    for result in comparison.cells[strategy].values():
        curve = result["curve"]
        values = curve[f"{group}_mean"] if name is None else curve[group].get(name, [])
        curves.append([(x, y) for x, y in zip(curve["tokens"], values) if y is not None])
    return curves


def learning_chart(comparison: Comparison, title: str, group: str, name: str | None, start: float, small: bool) -> str | None:
    """Losses of all strategies by tokens, from a share of the tokens on; None where no strategy was measured at two places."""
    own = {s: trunk_curves(comparison, s, group, name) for s in comparison.strategies}
    longest = max((c[-1][0] for curves in own.values() for c in curves if c), default=0.0)
    series = [mean_curve(s, curves, i, start * longest) for i, (s, curves) in enumerate(own.items())]
    if max((len(s.points) for s in series), default=0) < 2:
        return None
    return LineChart(title, series, "tokens", "nats per token", tokens, nats, small=small).svg()


def cooled_chart(comparison: Comparison, metric: Metric) -> str | None:
    """The metric at the cooled ends, by their share of the tokens; None with nothing but one end each."""
    series = []
    for i, strategy in enumerate(comparison.strategies):
        curves = [c for c in comparison.curves(strategy, metric).values() if c]
        same = [c for c in curves if len(c) == len(curves[0])]
        series.append(mean_curve(strategy, same, i))
    if max((len(s.points) for s in series), default=0) < 2:
        return None
    digits = 4 if metric.unit == "bits per byte" else 3
    return LineChart(
        metric.name, series, "share of the control's tokens", metric.unit, lambda v: f"{v:.0%}", lambda v: f"{v:.{digits}f}"
    ).svg()


def trade_chart(comparison: Comparison, title: str, won: Metric, given: Metric) -> str | None:
    """What strategies win at the end against what they give up, a dot for each with bars of one standard error over seeds; None
    with fewer than two that have both."""
    found = [(s, comparison.mean(s, given), comparison.mean(s, won)) for s in comparison.strategies]
    dots = [Dot(s, x.mean, y.mean, x.se, y.se) for s, x, y in found if x is not None and y is not None]
    if len(dots) < 2:
        return None
    return scatter_chart(title, dots, f"{given.name}, {given.unit}", f"{won.name}, {won.unit}")


def forest(title: str, rows: list[tuple[str, float, float | None]], unit: str) -> str:
    """Differences with their 95% intervals; rows are (name, mean, half-width), the width None where there is no interval."""
    return interval_chart(title, rows, f"difference, {unit} (left is better)")


def reach_bars(title: str, found: dict[str, ReachOverSeeds | None]) -> str:
    """Share of the control's tokens or FLOPs; what is not reached has no bar, and what is reached before the first end has one up
    to there."""
    bars = []
    for name, reached in found.items():
        if reached is None:
            continue
        if reached.place is not None:
            length = reached.place.mean
        else:
            places = [r.place for r in reached.by_seed.values()]
            length = 0.0 if None in places else math.fsum(places) / len(places)
        bars.append(Bar(name, length, reach_text(reached)))
    return bar_chart(title, bars)
