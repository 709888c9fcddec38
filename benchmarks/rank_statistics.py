"""Agreement of two rankings, and how reliable a noisy ranking is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.stats import spearmanr


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank.

    Raises:
        ValueError: for fewer than three pairs, a value that is not finite, or a constant side (no ranking to agree with).
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 3:
        raise ValueError(f"a rank correlation needs two lists of at least 3 values, got shapes {first.shape}, {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a rank correlation needs finite values")
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        raise ValueError("one side is constant: it ranks nothing")
    return float(spearmanr(first, second).statistic)


def bootstrap_interval(first: np.ndarray, second: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of Spearman's correlation when the pairs are drawn again with replacement."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(first), (draws, len(first)))
    values = [spearman(first[i], second[i]) for i in drawn if len(np.unique(i)) >= 3]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def split_half_reliability(repeats: np.ndarray) -> float:
    """Reliability of the mean over repeated measurements, float [n, repeats] with an even number of repeats.

    The Spearman correlation between the means of two halves, averaged over all ways to halve, stepped up to the full length by
    the formula of Spearman (1910) and Brown (1910), 2 r / (1 + r). No estimator is expected to correlate with the mean better
    than the square root of it.

    Raises:
        ValueError: for an odd number of repeats, or none.
    """
    repeats = np.asarray(repeats, dtype=np.float64)
    count = repeats.shape[1]
    if count < 2 or count % 2:
        raise ValueError(f"two halves need an even number of repeats, got {count}")
    # The half that holds repeat 0: every way to halve, once.
    halves = [(0, *rest) for rest in combinations(range(1, count), count // 2 - 1)]
    agreement = []
    for half in halves:
        other = [i for i in range(count) if i not in half]
        agreement.append(spearman(repeats[:, list(half)].mean(1), repeats[:, other].mean(1)))
    r = float(np.mean(agreement))
    return 2 * r / (1 + r)
