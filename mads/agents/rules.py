"""How label weights learn from rewards: pure arithmetic, one object per rule, no memory.

A rule turns a round's rewards into statistics per label, and statistics into new weights and the agent's own reward R_A.
Equations are those of arXiv 2410.08102. docs/selection.md has both rules in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

SCALES = ("none", "rms", "zscore")
_ROUNDING = 1e-12  # a spread below this part of the largest value is rounding error, not information
_PRIOR_PROBES = 4.0  # probes that the pooled variance counts for beside a label's own


@dataclass(frozen=True)
class LabelStatistics:
    """What one round's probes say about each of L labels.

    mean: float64 [L], the label's reward R_j; NaN for a label that had no probe
    se: float64 [L], its standard error; NaN where there is none to be had
    probes, tokens: int64 [L], probes and the targets behind them
    """

    mean: np.ndarray
    se: np.ndarray
    probes: np.ndarray
    tokens: np.ndarray


class LearningRule(Protocol):
    """`scale` names the mode of `scale_rewards` that the rule expects its rewards in."""

    scale: str

    def start(self, shares: np.ndarray) -> np.ndarray:
        """Weights before the first rewards, float64 [L]."""

    def statistics(
        self, codes: np.ndarray, labels: int, rewards: np.ndarray, targets: np.ndarray, importance: np.ndarray
    ) -> LabelStatistics:
        """Statistics per label from n probes: codes int [n] below `labels`, the rest float64/int64 [n]."""

    def step(self, weights: np.ndarray, shares: np.ndarray, statistics: LabelStatistics) -> tuple[np.ndarray, float]:
        """(new weights float64 [L], R_A). `shares` are the labels' shares of the tokens of the mix, float64 [L], sum 1."""

    def judge(self, scores: np.ndarray, rewards: np.ndarray, counted: np.ndarray) -> float:
        """R_A of an agent without label weights, from its scores of n probes, float64 [n]. counted: what each stands for in the
        mix, importance * targets * share of its label in the mix / in the pool."""


def scale_rewards(
    rewards: np.ndarray,
    targets: np.ndarray,
    importance: np.ndarray,
    mode: str,
    ids: np.ndarray | None = None,
    spread: float | None = None,
) -> np.ndarray:
    """One round's rewards on one scale, float64 [n]. Every probe counts with importance * targets.

    mode "none": as they are (losses, in nats).
    mode "rms": divided by the weighted root mean square, so that the sign stays; all zeros stay zeros.
    mode "zscore": weighted mean 0 and standard deviation 1; rewards that are all equal (one probe included) become zeros.

    Args:
        ids: names of the probes for the error message, int64 [n]; positions if not given.
        spread: divide by it instead of by the rewards' own root mean square or standard deviation; all zeros if it is 0.

    Raises:
        ValueError: without probes or targets, if a reward is not finite, or for an unknown mode.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    weight = np.asarray(targets, dtype=np.float64) * np.asarray(importance, dtype=np.float64)
    if mode not in SCALES:
        raise ValueError(f"reward scale {mode!r} is not one of {', '.join(SCALES)}")
    if not (rewards.shape == weight.shape and rewards.ndim == 1):
        raise ValueError(f"rewards {rewards.shape}, targets and importance {weight.shape} must be vectors of one length")
    if len(rewards) == 0:
        raise ValueError("a round without probes has no rewards; draw at least one probe")
    bad = np.flatnonzero(~np.isfinite(rewards))
    if len(bad):
        first = bad[:5] if ids is None else np.asarray(ids)[bad[:5]]
        raise ValueError(
            f"{len(bad)} of {len(rewards)} rewards are NaN or infinite, first probes {first.tolist()}; "
            "the model diverged, or the reward's step is too large"
        )
    if (weight < 0).any() or not np.isfinite(weight).all() or weight.sum() <= 0:
        raise ValueError("targets and importance of the probes must be finite, not negative, and positive in sum")
    if mode == "none":
        return rewards.copy()
    largest = np.abs(rewards).max()
    if largest == 0:
        return np.zeros_like(rewards)
    rewards = rewards / largest  # so that squares of tiny rewards do not underflow
    weight = weight / weight.sum()
    if mode == "rms":
        unit, least = np.sqrt((weight * rewards**2).sum()), 0.0
    else:
        rewards = rewards - (weight * rewards).sum()
        unit, least = np.sqrt((weight * rewards**2).sum()), _ROUNDING
    if spread is not None:
        unit, least = spread / largest, 0.0
    return rewards / unit if unit > least else np.zeros_like(rewards)


def _sum_by_label(codes: np.ndarray, labels: int, values: np.ndarray) -> np.ndarray:
    return np.bincount(codes, weights=values, minlength=labels)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


@dataclass(frozen=True)
class PaperRule:
    """Eq. 4, 5 and 7, with batch means (the released scripts update one sample at a time, so that the last few decide).

    rate: eta of Eq. 5.
    """

    rate: float
    scale = "rms"

    def start(self, shares: np.ndarray) -> np.ndarray:
        """The labels' shares of the pool's tokens (the paper fits start weights with 512 proxy runs)."""
        return shares.copy()

    def statistics(self, codes, labels, rewards, targets, importance) -> LabelStatistics:
        """Eq. 4: plain means over the agent's own probes; the standard error is the usual one, from two probes on."""
        count = np.bincount(codes, minlength=labels)
        mean = _ratio(_sum_by_label(codes, labels, rewards), count)
        squares = _sum_by_label(codes, labels, (rewards - mean[codes]) ** 2)
        se = np.sqrt(_ratio(squares, count * (count - 1)))
        return LabelStatistics(mean, se, count, _sum_by_label(codes, labels, targets).astype(np.int64))

    def step(self, weights, shares, statistics) -> tuple[np.ndarray, float]:
        """Eq. 5, then Eq. 7 with the updated weights. A label without probes in this round keeps its weight and has no R_j,
        so it counts neither in the sum nor in n_A: an old R_j was measured on another model and another scale."""
        probed = ~np.isnan(statistics.mean)
        if not probed.any():
            return weights.copy(), 0.0
        updated = weights.copy()
        updated[probed] = (1 - self.rate) * weights[probed] + self.rate * statistics.mean[probed]
        return updated, float((updated[probed] * statistics.mean[probed]).mean())

    def judge(self, scores, rewards, counted) -> float:
        """Eq. 7 with the probes in the labels' place, and with scores from before the update."""
        return float((scores * rewards).mean())


@dataclass(frozen=True)
class MadsRule:
    """Weighted means, shrunk by their own noise; the agent is judged by what it believed before it saw the rewards.

    rate: how far a weight moves toward its label's shrunk mean, in [0, 1].
    """

    rate: float
    scale = "zscore"

    def start(self, shares: np.ndarray) -> np.ndarray:
        """No opinion: 0 is the round's mean reward on the z-scored scale, so the first decisions follow the pool."""
        return np.zeros_like(shares)

    def statistics(self, codes, labels, rewards, targets, importance) -> LabelStatistics:
        """Means with weights a = importance * targets, standard errors s_j / sqrt(effective sample size).

        s_j^2 mixes the label's own weighted variance with the one pooled over labels, which counts for 4 probes: the variance
        of two or three probes says little, that of one says nothing.
        """
        a = importance * targets.astype(np.float64)
        total = _sum_by_label(codes, labels, a)
        mean = _ratio(_sum_by_label(codes, labels, a * rewards), total)
        size = _ratio(total**2, _sum_by_label(codes, labels, a**2))  # Kish's effective sample size
        deviation = np.where(a > 0, rewards - mean[codes], 0.0)
        squares = size * _ratio(_sum_by_label(codes, labels, a * deviation**2), total)
        freedom = np.maximum(size - 1, 0)
        probed = total > 0
        if probed.any() and freedom[probed].sum() > 1e-9:
            pooled = squares[probed].sum() / freedom[probed].sum()
            se = np.sqrt((_PRIOR_PROBES * pooled + squares) / (_PRIOR_PROBES + freedom) / size)
        else:
            se = np.full(labels, np.nan)  # one probe a label: nothing tells noise from difference
        counted = np.bincount(codes[a > 0], minlength=labels)
        return LabelStatistics(mean, se, counted, _sum_by_label(codes, labels, targets).astype(np.int64))

    def step(self, weights, shares, statistics) -> tuple[np.ndarray, float]:
        """R_A from the weights as they were, then the move toward the shrunk means. A label without probes keeps its weight."""
        probed = ~np.isnan(statistics.mean)
        if not probed.any():
            return weights.copy(), 0.0
        mean, before, share = statistics.mean[probed], weights[probed], shares[probed]
        updated = weights.copy()
        updated[probed] = (1 - self.rate) * before + self.rate * shrink(mean, statistics.se[probed])
        return updated, standardised_gain(before, mean, share)

    def judge(self, scores, rewards, counted) -> float:
        """`standardised_gain` with the probes in the labels' place: for a label agent's scores it is what `step` estimates."""
        return standardised_gain(scores, rewards, counted)


@dataclass(frozen=True)
class MirrorRule(MadsRule):
    """Weights are logarithms of shares, and follow the shrunk means by exponentiated gradient (mirror ascent on the mix): a
    label's weight grows for as long as more of it helps more than the mix does, and stays where labels help alike. A mix that
    is best inside the simplex is therefore a resting point, where means themselves as weights would oscillate around it.

    rate: by how much a weight moves for a gain of one standard deviation of the labels' means.
    """

    def step(self, weights, shares, statistics) -> tuple[np.ndarray, float]:
        """R_A from the weights as they were, then the move. Labels without probes keep their weight."""
        probed = ~np.isnan(statistics.mean)
        if not probed.any():
            return weights.copy(), 0.0
        mean, before, share = statistics.mean[probed], weights[probed], shares[probed]
        gain = shrink(mean, statistics.se[probed])
        centre = (share * gain).sum() / share.sum() if share.sum() > 0 else gain.mean()
        updated = weights.copy()
        updated[probed] = before + self.rate * (gain - centre)
        return updated, standardised_gain(before, mean, share)


def shrink(mean: np.ndarray, se: np.ndarray) -> np.ndarray:
    """Empirical-Bayes means, float64 [L]: m + B_j (R_j - m) with B_j = tau^2 / (tau^2 + se_j^2).

    tau^2, the variance between labels, is Hedges' moment estimate (the variance of the R_j less the mean se_j^2, not below 0)
    and m the mean with weights 1 / (tau^2 + se_j^2). Unknown standard errors shrink all the way; a single label stays as it is.
    """
    if len(mean) < 2:
        return mean.copy()
    if np.isnan(se).any():
        return np.full_like(mean, mean.mean())
    between = max(0.0, mean.var(ddof=1) - (se**2).mean())
    if between == 0 and not (se > 0).all():
        return np.full_like(mean, mean.mean())
    precision = 1 / (between + se**2)
    centre = (precision * mean).sum() / precision.sum()
    return centre + between * precision * (mean - centre)


def standardised_gain(weights: np.ndarray, mean: np.ndarray, shares: np.ndarray) -> float:
    """sum_j p_j (w_j - wbar)(R_j - Rbar) / std(w), with p the shares scaled to sum 1, wbar and Rbar means and std under p.

    The reward gained, per standard deviation of the agent's score, by following the agent a little more from a mix with shares p:
    the derivative of the mix's mean reward by theta_A is its covariance with the agent's score, over the mix. So labels that
    nobody takes any more earn an agent nothing. It grows neither with the number of labels nor with the size of the weights, and,
    with weights from before the rewards, noise in R_j has mean 0 in it. Equal weights prefer nothing and gain 0.
    """
    if shares.sum() <= 0:
        return 0.0
    p = shares / shares.sum()
    deviation = weights - (p * weights).sum()
    spread = np.sqrt((p * deviation**2).sum())
    if spread <= _ROUNDING * np.abs(weights).max():
        return 0.0
    return float((p * deviation * (mean - (p * mean).sum())).sum() / spread)
