"""An agent that sees a number per sample and learns which values help: a curve, monotone or free."""

from __future__ import annotations

import numpy as np

from mads.agents.agent import AgentBase
from mads.agents.base import AttributeView, ProbeRewards
from mads.agents.columns import pieces, token_quantiles
from mads.agents.label import finite, normal_scores

SHAPES = ("monotone", "binned")
MOST_BINS = 256
_BLOCK = 1 << 14  # values interpolated at a time
_FEW = 32


class ContinuousAgent(AgentBase):
    """S(x) = the curve through (centre_b, f_b) at the sample's value, linear between the centres and constant beyond them.

    Bins hold equal parts of the pool's tokens; their edges are values of the pool, equal ones are one, and centre_b is a bin's
    mean value. The bins' weights follow rewards as a label agent's follow them, by the selection's rule. shape="binned": f is
    the weights; shape="monotone": f is the rising or falling sequence nearest to them, whichever is nearer, each bin counting
    with the targets probed in it so far. Samples whose value is NaN or infinite are one bin of their own, outside the curve.

    Args:
        attribute: a column with values (`AttributeView.values`).
        shape: "monotone" or "binned".
        bins: 2 to 256; fewer are made where values repeat.
        prior: start weights of the bins rise by it for each standard deviation between them (`normal_scores`), for a column whose
            greater values are believed to be better. The first decisions follow it, rewards correct it.

    After `bind`: missing, the number of the pool's samples without a finite value.
    """

    memory = ("edges", "centres", "bin_shares", "bin_weights", "evidence", "missing")

    def __init__(self, attribute: str, name: str | None = None, shape: str = "monotone", bins: int = 10, prior: float = 0.0):
        super().__init__(attribute, name)
        if shape not in SHAPES:
            raise ValueError(f"shape={shape!r} is not one of {', '.join(SHAPES)}")
        if isinstance(bins, bool) or not isinstance(bins, int) or not 2 <= bins <= MOST_BINS:
            raise ValueError(f"bins={bins!r} must be a whole number from 2 to {MOST_BINS}")
        if not finite(prior):
            raise ValueError(f"prior={prior!r} must be a finite number")
        self.shape, self.bins, self.prior = shape, bins, float(prior)

    def start(self, view: AttributeView) -> None:
        *inner, greatest = token_quantiles(view, self.attribute, np.arange(1, self.bins + 1) / self.bins)
        self.edges = np.unique(np.array([edge for edge in inner if edge < greatest], dtype=np.float64))
        tokens, total = self._survey(view)
        self.centres = total[:-1] / tokens[:-1]
        self.bin_weights = self.rule.start(self.bin_shares)
        if self.prior:
            self.bin_weights[:-1] += self.prior * normal_scores(self.bin_shares[:-1])
        self.evidence = np.zeros(len(self.bin_shares), dtype=np.int64)
        self.restored()

    def grow(self, view: AttributeView, known: int) -> None:
        """Bins stay where they are, for what was learned about them."""
        self._survey(view)

    def _survey(self, view: AttributeView) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, tokens times value) of each bin; counts what is missing."""
        tokens, total, self.missing = np.zeros(len(self.edges) + 2, np.int64), np.zeros(len(self.edges) + 2), 0
        for part in pieces(view):
            bins, values = self.bin_of(part), np.asarray(part.values(self.attribute), dtype=np.float64)
            tokens += np.bincount(bins, weights=part.lengths, minlength=len(tokens)).astype(np.int64)
            total += np.bincount(bins, weights=np.where(np.isfinite(values), values, 0.0) * part.lengths, minlength=len(tokens))
            self.missing += int(np.count_nonzero(bins == len(tokens) - 1))
        self.bin_shares = tokens / tokens.sum()
        return tokens, total

    def bin_of(self, view: AttributeView) -> np.ndarray:
        """Bin of each sample, int64 [n]; the last one is that of samples without a finite value."""
        values = np.asarray(view.values(self.attribute), dtype=np.float64)
        return np.where(np.isfinite(values), np.searchsorted(self.edges, values), len(self.edges) + 1)

    def score(self, view: AttributeView) -> np.ndarray:
        values = np.asarray(view.values(self.attribute), dtype=np.float64)
        known = np.isfinite(values)
        return np.where(known, interpolate(np.where(known, values, 0.0), self.centres, self.curve), self.bin_weights[-1])

    def update(self, probes: ProbeRewards) -> None:
        count = len(self.bin_weights)
        found = self.rule.statistics(self.bin_of(probes.view), count, probes.rewards, probes.targets, probes.importance)
        self.bin_weights, _ = self.rule.step(self.bin_weights, self.bin_shares, found)
        self.evidence = self.evidence + found.tokens
        self.restored()

    def restored(self) -> None:
        weights, evidence = self.bin_weights[:-1], self.evidence[:-1]
        if self.shape == "binned" or not evidence.any():
            self.curve = weights.copy()
        else:
            self.curve = monotone(weights, np.maximum(evidence, 1e-3))  # a bin without probes follows its neighbours

    def load_state(self, state: dict) -> None:
        super().load_state(state)
        if not len(self.edges) + 2 == len(self.centres) + 1 == len(self.bin_weights) == len(self.evidence):
            raise ValueError(f"the checkpoint's agent {self.name!r} has bins that do not fit each other; its state is damaged")


def interpolate(values: np.ndarray, centres: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Piecewise linear through (centres, heights), constant beyond, float64 [n]; element by element, so that no cut matters."""
    if len(centres) == 1:
        return np.full(len(values), heights[0])
    result = np.empty(len(values))
    for start in range(0, len(values), _BLOCK):  # whole pools come here: what a block needs stays in a core's cache
        where = slice(start, start + _BLOCK)
        result[where] = _interpolated(values[where], centres, heights)
    return result


def _interpolated(values: np.ndarray, centres: np.ndarray, heights: np.ndarray) -> np.ndarray:
    if len(centres) <= _FEW:  # comparing with each is several times faster than a search
        left = np.zeros(len(values), dtype=np.uint8)
        for centre in centres[1:-1]:
            left += values >= centre
    else:
        left = np.clip(np.searchsorted(centres, values, side="right") - 1, 0, len(centres) - 2)
    first, width = centres.take(left), (centres[1:] - centres[:-1]).take(left)
    part = np.clip((values - first) / width, 0.0, 1.0)
    return heights.take(left) * (1 - part) + heights[1:].take(left) * part


def monotone(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The rising or falling sequence with the least weighted squared error, float64 [n]; rising if both fit alike."""
    rising, falling = isotonic(values, weight), -isotonic(-values, weight)
    error = [(weight * (fit - values) ** 2).sum() for fit in (rising, falling)]
    return rising if error[0] <= error[1] else falling


def isotonic(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The rising sequence with the least weighted squared error (pool adjacent violators; Barlow et al. 1972)."""
    blocks: list[list[float]] = []  # mean, weight, length
    for value, w in zip(values.tolist(), weight.tolist()):
        blocks.append([value, w, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, mass, length = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + mean * mass) / (last[1] + mass)
            last[1], last[2] = last[1] + mass, last[2] + length
    return np.repeat([b[0] for b in blocks], [b[2] for b in blocks])
