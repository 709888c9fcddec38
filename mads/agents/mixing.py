"""How the mix of one attribute's labels follows losses: the arithmetic of three online mixers. Pure functions, no memory.

Vectors are over the K labels that the pool holds. What is simplified against the papers: docs/selection.md, "Online mixing".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mads.agents.rules import MadsRule

_CAUTION = 2.0  # times the noise's part of what is explained, which a response must exceed
_LEAST_FREEDOM = 4.0  # rounds that are left to tell the noise by
ALPHAS = np.arange(5, 81) / 100  # exponents that are tried; ADO's released fit keeps to these bounds


class LossRule(MadsRule):
    """Statistics per label of losses as they are: token means and their standard errors, in nats."""

    scale = "none"

    def __init__(self):
        super().__init__(rate=1.0)


def raised(mix: np.ndarray, floor: float) -> np.ndarray:
    """max(mix, floor), scaled back to sum 1, float64 [K] (ADO's clip)."""
    mix = np.maximum(mix, floor)
    return mix / mix.sum()


# ---------------------------------------------------------------- ODM (Albalak et al., arXiv 2312.02406)


def exploration_rate(arms: int, step: int) -> float:
    """eps_t = min(1/K, sqrt(ln K / (K t))); 1/K, all exploration, before the first step."""
    return min(1 / arms, float(np.sqrt(np.log(arms) / (arms * step)))) if step > 0 else 1 / arms


def follow_rewards(estimates: np.ndarray, losses: np.ndarray, mix: np.ndarray, smoothing: float) -> np.ndarray:
    """R_k <- smoothing R_k + (1 - smoothing) L_k / pi_k; an arm whose loss is NaN was not seen and keeps its estimate."""
    seen = np.where(np.isnan(losses), 0.0, losses) / mix
    return np.where(np.isnan(losses), estimates, smoothing * estimates + (1 - smoothing) * seen)


def exp3_mix(estimates: np.ndarray, before: float, rate: float) -> np.ndarray:
    """pi_k = (1 - K eps_t) exp(eps_(t-1) R_k) / sum_j exp(eps_(t-1) R_j) + eps_t, float64 [K].

    Args:
        before, rate: eps of the step before and of this one.
    """
    gibbs = np.exp(before * (estimates - estimates.max()))
    return (1 - len(estimates) * rate) * gibbs / gibbs.sum() + rate


# ---------------------------------------------------------------- ADO (Jiang et al., arXiv 2410.11820)


@dataclass(frozen=True)
class PowerLaw:
    """L(n) = eps + beta (n / n_T)^-alpha, with n_T the tokens at the last measurement: beta is the reducible loss there."""

    eps: float
    beta: float
    alpha: float

    @property
    def speed(self) -> float:
        """-n_T dL/dn at n_T = alpha beta, in nats: the learning speed but for the factor 1 / n_T that all labels share."""
        return self.alpha * self.beta


def fit_power_law(tokens: np.ndarray, losses: np.ndarray) -> PowerLaw:
    """The law with the least squared error, eps >= 0 and beta >= 0, over the exponents ALPHAS; the smallest of equal ones.

    Given alpha the law is linear in (eps, beta), so that each exponent has one exact solution and no starting point matters.

    Args:
        tokens: float64 [T], positive, trained on before each measurement; losses: float64 [T], positive. T >= 2.
    """
    best, least = None, np.inf
    for alpha in ALPHAS:
        x = (tokens / tokens[-1]) ** -alpha
        spread = x - x.mean()
        square = spread @ spread
        beta = (spread @ losses) / square if square > 0 else 0.0
        eps = losses.mean() - beta * x.mean()
        if beta < 0:  # the optimum lies on the bound that the free one breaks; both cannot break, losses are positive
            eps, beta = losses.mean(), 0.0
        elif eps < 0:
            eps, beta = 0.0, (x @ losses) / (x @ x)
        error = ((losses - eps - beta * x) ** 2).sum()
        if error < least:
            best, least = PowerLaw(float(eps), float(beta), float(alpha)), error
    return best


def preference(shares: np.ndarray, credit: np.ndarray, speed: np.ndarray, power: float, floor: float) -> np.ndarray:
    """rho_k in proportion to mu_k h_k^s (-dL_k/dn), held at `floor`; mu where no label learns. float64 [K].

    Args:
        shares: mu, the pool's; credit: h, the running mean of what was trained on; speed: >= 0; power: s.
    """
    rho = shares * credit**power * speed
    return raised(rho / rho.sum() if rho.sum() > 0 else shares / shares.sum(), floor)


# ---------------------------------------------------------------- free group probes (after Aioli, arXiv 2411.05735)


def contrast(labels: int, index: int) -> np.ndarray:
    """Signs of the labels in contrast `index`, float64 [K]: a column of Sylvester's Hadamard matrix with at least K rows.

    Contrasts come in pairs of both signs, so that a trend cancels, and the order inside a pair alternates.
    """
    size = 1 << max(1, (labels - 1).bit_length())
    pair, second = divmod(index, 2)
    column = 1 + pair % (size - 1)
    signs = np.array([(-1.0) ** (row & column).bit_count() for row in range(labels)])
    return signs if (pair + second) % 2 == 0 else -signs


def deviated(mix: np.ndarray, signs: np.ndarray, distance: float) -> np.ndarray:
    """The mix with every label up or down by exp(+-distance), scaled to sum 1, float64 [K]."""
    mix = mix * np.exp(distance * signs)
    return mix / mix.sum()


@dataclass(frozen=True)
class Response:
    """What rounds say about the mix: d(change of the reference loss) / d(share).

    gradient: float64 [K], nats a round; sum 0
    trust: in [0, 1], the part of what the mix explains that is not noise; 0 while there are too few rounds
    """

    gradient: np.ndarray
    trust: float


def fit_response(mixes: np.ndarray, changes: np.ndarray, decay: float, ridge: float) -> Response:
    """Least squares of y_r = a + b r + g (q_r - qbar) + noise over rounds r = 1..T; one that is k rounds old counts decay^k.

    g is shrunk by ridge * trace(S) / (K - 1), S the mixes' scatter about their own trend. With v the noise's variance and p the
    effective number of effects, trust = max(0, 1 - 2 p v / (sum of squares that g explains)): the form of James and Stein, with
    2 where they have 1, because each round goes by all rounds again, so that noise that was believed once is believed often.

    Args:
        mixes: q, float64 [T, K], the shares that rounds trained on; changes: y, float64 [T], of the reference loss.
    """
    rounds, labels = mixes.shape
    nothing = Response(np.zeros(labels), 0.0)
    if rounds < 4 or labels < 2:
        return nothing
    weight = decay ** np.arange(rounds - 1, -1, -1, dtype=np.float64)
    weight *= weight.sum() / (weight**2).sum()  # in sum the effective number of rounds
    root = np.sqrt(weight)[:, None]
    trend = root * np.stack([np.ones(rounds), np.linspace(-1, 1, rounds)], axis=1)
    both = root * np.concatenate([mixes - mixes.mean(0), changes[:, None]], axis=1)
    both = both - trend @ np.linalg.solve(trend.T @ trend, trend.T @ both)
    x, y = both[:, :-1], both[:, -1]
    scatter = x.T @ x
    if not np.trace(scatter) > 1e-18:
        return nothing
    inverse = np.linalg.inv(scatter + ridge * np.trace(scatter) / (labels - 1) * np.eye(labels))
    gradient = inverse @ (x.T @ y)
    effects = float(np.trace(inverse @ scatter))
    residual = float(((y - x @ gradient) ** 2).sum())
    explained, freedom = float((y**2).sum()) - residual, float(weight.sum()) - 2 - effects
    if freedom < _LEAST_FREEDOM or explained <= 0:
        return nothing
    return Response(gradient - gradient.mean(), max(0.0, 1 - _CAUTION * effects * residual / freedom / explained))


def descend(mix: np.ndarray, response: Response, rate: float, floor: float) -> np.ndarray:
    """Exponentiated gradient: pi_k exp(-rate trust (g_k - gbar) / std(g)), mean and std under pi, held at `floor`; [K]."""
    deviation = response.gradient - mix @ response.gradient
    spread = float(np.sqrt(mix @ deviation**2))
    if response.trust == 0 or spread <= 1e-12 * np.abs(response.gradient).max():
        return mix
    mix = mix * np.exp(-rate * response.trust * deviation / spread)
    return raised(mix / mix.sum(), floor)
