"""An agent that sees one categorical attribute and holds one weight per label."""

from __future__ import annotations

from typing import Any

import numpy as np

from mads.agents.base import AttributeView, LabelRecord, ProbeRewards
from mads.agents.rules import LabelStatistics, LearningRule


def label_codes(view: AttributeView, attribute: str) -> np.ndarray:
    """Codes of an attribute, checked against its label names.

    Raises:
        ValueError: if a code has no name.
    """
    codes, labels = np.asarray(view.codes(attribute)), view.labels(attribute)
    if len(codes) and int(codes.max()) >= len(labels):
        raise ValueError(
            f"attribute {attribute!r} has code {int(codes.max())}, but only {len(labels)} labels {list(labels)}; "
            "label the data again"
        )
    return codes


def token_shares(view: AttributeView, attribute: str, piece: int = 1 << 20) -> np.ndarray:
    """Share of the view's tokens that each label holds, float64 [L], sum 1. Read a piece at a time."""
    labels = len(view.labels(attribute))
    tokens = np.zeros(labels, dtype=np.int64)
    for start in range(0, len(view), piece):
        part = view.view(slice(start, min(start + piece, len(view))))
        tokens += np.bincount(label_codes(part, attribute), weights=part.lengths, minlength=labels).astype(np.int64)
    if tokens.sum() <= 0:
        raise ValueError(f"the pool is empty: attribute {attribute!r} covers {len(view)} samples and no token")
    return tokens / tokens.sum()


class LabelAgent:
    """Memory of the paper's agents: S_A(x) = w_{label(x)}. Start weights are the pool's own token shares.

    Args:
        attribute: the column that the agent sees.
        name: its name in records; the attribute's if not given.
    """

    def __init__(self, attribute: str, name: str | None = None):
        self.attribute = attribute
        self.name = name or attribute

    def bind(self, view: AttributeView, rule: LearningRule) -> None:
        self.labels = tuple(view.labels(self.attribute))
        self.shares = token_shares(view, self.attribute)
        self.weights = rule.start(self.shares)
        self.statistics: LabelStatistics | None = None
        self._rule = rule

    def rebind(self, view: AttributeView) -> None:
        """New labels start as `bind` starts them; they have no statistics yet."""
        known = len(self.weights)
        self.labels = tuple(view.labels(self.attribute))
        self.shares = token_shares(view, self.attribute)
        self.weights = np.concatenate([self.weights, self._rule.start(self.shares)[known:]])
        if self.statistics is not None:
            new = len(self.labels) - known
            s = self.statistics
            self.statistics = LabelStatistics(
                np.append(s.mean, np.full(new, np.nan)),
                np.append(s.se, np.full(new, np.nan)),
                np.append(s.probes, np.zeros(new, np.int64)),
                np.append(s.tokens, np.zeros(new, np.int64)),
            )

    def score(self, view: AttributeView) -> np.ndarray:
        return self.weights[label_codes(view, self.attribute)]

    def learn(self, probes: ProbeRewards) -> float:
        codes = label_codes(probes.view, self.attribute)
        self.statistics = self._rule.statistics(codes, len(self.labels), probes.rewards, probes.targets, probes.importance)
        self.weights, reward = self._rule.step(self.weights, self.shares, self.statistics)
        return reward

    def describe(self) -> list[LabelRecord]:
        records = []
        for j, label in enumerate(self.labels):
            record = LabelRecord(label, float(self.weights[j]), pool_share=float(self.shares[j]))
            if self.statistics is not None:
                record.reward_mean, record.reward_se = _known(self.statistics.mean[j]), _known(self.statistics.se[j])
                record.probes, record.probe_tokens = int(self.statistics.probes[j]), int(self.statistics.tokens[j])
            records.append(record)
        return records

    def state(self) -> dict[str, Any]:
        value: dict[str, Any] = {"attribute": self.attribute, "labels": list(self.labels), "weights": self.weights.tolist()}
        if self.statistics is not None:
            value["statistics"] = {
                "mean": [_known(v) for v in self.statistics.mean],
                "se": [_known(v) for v in self.statistics.se],
                "probes": self.statistics.probes.tolist(),
                "tokens": self.statistics.tokens.tolist(),
            }
        return value

    def load_state(self, state: dict[str, Any]) -> None:
        if state["attribute"] != self.attribute or tuple(state["labels"]) != self.labels:
            raise ValueError(
                f"the checkpoint's agent {self.name!r} sees {state['attribute']!r} with labels {state['labels']}, this one sees "
                f"{self.attribute!r} with labels {list(self.labels)}; resume with the agents and the data of the checkpoint"
            )
        self.weights = np.array(state["weights"], dtype=np.float64)
        stored = state.get("statistics")
        self.statistics = stored and LabelStatistics(
            np.array([np.nan if v is None else v for v in stored["mean"]], dtype=np.float64),
            np.array([np.nan if v is None else v for v in stored["se"]], dtype=np.float64),
            np.array(stored["probes"], dtype=np.int64),
            np.array(stored["tokens"], dtype=np.int64),
        )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
