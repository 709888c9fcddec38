"""From a measure without a scale of its own to a score from 0 to 5 and the bins of the FineWeb-Edu score, or to quantile bins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LABELS = ("[0,1)", "[1,2)", "[2,3)", "[3,4)", "[4,5]")
SCORES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
QUANTILES = (0.0, 0.1, 0.3, 0.7, 0.9, 1.0)  # of the fit sample, at which the score takes the values SCORES


def knots_of(raw: np.ndarray) -> np.ndarray:
    """Where the measure takes the values SCORES, ascending float64 [6]: its QUANTILES over a sample [n]."""
    knots = np.quantile(raw, QUANTILES)
    steps = np.maximum(np.diff(knots), 1e-6)  # ties at a quantile would make two knots equal
    return knots[0] + np.concatenate([[0.0], np.cumsum(steps)])


def score_of(raw: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """float32 [n] in [0, 5], monotone and piecewise linear in the measure."""
    return np.interp(raw, knots, SCORES).astype(np.float32)


def bins_of(score: np.ndarray) -> np.ndarray:
    """uint16 [n]: 0 for [0, 1) up to 4 for [4, 5]."""
    return np.minimum(np.floor(score), len(LABELS) - 1).astype(np.uint16)


def quantile_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Inner edges of at most `bins` bins that hold equal shares of the values [n], float64 ascending, rounded to 4 digits so that
    their names are exact; fewer where values tie."""
    edges = np.quantile(values, np.arange(1, bins) / bins)
    return np.unique([float(f"{edge:.4g}") for edge in edges])


def quantile_names(edges: Sequence[float]) -> tuple[str, ...]:
    """<2, [2,3), >=3 for the inner edges 2 and 3."""
    ends = [f"{edge:.4g}" for edge in edges]
    return (f"<{ends[0]}", *(f"[{a},{b})" for a, b in zip(ends, ends[1:])), f">={ends[-1]}")


def quantile_bins(values: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """uint16 [n]: how many of the inner edges are at or below each value."""
    return np.searchsorted(np.asarray(edges), values, side="right").astype(np.uint16)
