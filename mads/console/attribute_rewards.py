"""Which agent a reward belongs to: effects of agents that see one attribute are told apart before each learns from its own.

Labels of different attributes go together (good domains hold good documents). An agent that learned from the rewards as they
are would claim what is another's too, and a sum of such agents would count it twice. So an additive model of the rewards

    r(x) = mu + sum_A e_{A, label_A(x)} + interaction of the joint cell + noise,   e_A ~ N(0, tau_A^2)

is fitted, with a variance for each agent (mads.agents.joint.fit_additive, EM); agent A then learns from r(x) less the others'
effects.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mads.agents.joint import CellMeans, fit_additive


def own_parts(
    codes: Sequence[np.ndarray], sizes: Sequence[int], rewards: np.ndarray, counted: np.ndarray
) -> tuple[np.ndarray, float]:
    """(each agent's rewards: those of the probes less the other agents' effects, float64 [agents, n]; scale).

    The scale is the standard deviation between labels, all agents together: the root of the summed variances of the labels'
    mean own parts, each label with its probes' weight, noise included. Rewards divided by it tell a label's gain in units in
    which noise alone cannot look large after shrinking. Rewards that are shrunk before, as those of group probes, bring a scale
    of their own (RoundRewards.scale). It is 0 if labels do not differ at all.

    Args:
        codes: of each agent, integers [n] below its size
        sizes: labels of each agent
        counted: float64 [n], what a probe counts for, importance * targets
    """
    rewards, counted = np.asarray(rewards, dtype=np.float64), np.asarray(counted, dtype=np.float64)
    effects = [np.zeros(size) for size in sizes]
    means = _cell_means(np.ravel_multi_index(list(codes), list(sizes)), rewards, counted)
    if len(sizes) > 1 and means is not None:
        fitted, _ = fit_additive(means, np.stack(np.unravel_index(means.cells, list(sizes))), list(sizes))
        effects = np.split(fitted[1:], np.cumsum(sizes)[:-1])
    told = [effect[code] for effect, code in zip(effects, codes)]
    own = np.stack([rewards - (sum(told) - mine) for mine in told])
    return own, float(np.sqrt(sum(_between(code, size, row, counted) for code, size, row in zip(codes, sizes, own))))


def _cell_means(cells: np.ndarray, rewards: np.ndarray, counted: np.ndarray) -> CellMeans | None:
    """None where there is nothing to tell apart."""
    present, place = np.unique(cells[counted > 0], return_inverse=True)
    a, r = counted[counted > 0], rewards[counted > 0]
    if not len(present) or not (a * r * r).sum() > 0:
        return None
    n, q = np.bincount(place, a), np.bincount(place, a * a)
    mean, size, scale = np.bincount(place, a * r) / n, n * n / q, (a * r * r).sum() / a.sum()
    within = size * np.bincount(place, a * (r - mean[place]) ** 2) / n
    freedom = np.maximum(size - 1, 0).sum()
    noise = within.sum() / freedom if freedom > 1e-9 else scale  # one probe a cell: all may be noise
    return CellMeans(present, mean, size, max(noise, 1e-6 * scale), scale)


def _between(codes: np.ndarray, size: int, rewards: np.ndarray, counted: np.ndarray) -> float:
    """Variance of the labels' weighted means, each label with its weight."""
    total = np.bincount(codes, counted, size)
    mean = np.divide(np.bincount(codes, counted * rewards, size), total, out=np.zeros(size), where=total > 0)
    share = total / total.sum()
    return float((share * (mean - (share * mean).sum()) ** 2).sum())
