"""What agents have in common: an agent overrides what is its own, and no more."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from mads.agents.base import AttributeView, LabelRecord, ProbeRewards
from mads.agents.columns import label_codes, token_shares
from mads.agents.rules import LabelStatistics, LearningRule


class AgentBase(ABC):
    """An agent that never learns. A subclass gives `score`, and as much of `start`, `grow`, `update` and `memory` as it needs.

    Args:
        attribute: probes are drawn per label of this column, and decisions are recorded by its labels.
        name: the agent's name in records; the attribute's if not given.

    After `bind` an agent has
        labels, shares: the attribute's label names and their shares of the pool's tokens, float64 [L], sum 1
        rule: the selection's learning rule
        weights: float64 [L], what records show as the labels' weights: mean scores of a round's probes
        statistics: what the last rewards said about each label; None before the first
    """

    memory: tuple[str, ...] = ()  # names of what the agent learned, for checkpoints: numbers, strings, arrays without NaN

    def __init__(self, attribute: str, name: str | None = None):
        if not isinstance(attribute, str):
            raise ValueError(f"attribute={attribute!r} must be the name of one attribute")
        self.attribute = attribute
        self.name = name or attribute

    # ------------------------------------------------------------ what a subclass may say

    def start(self, view: AttributeView) -> None:  # noqa: B027 - may stay empty
        """Opinion before the first rewards. `view` is the whole pool, to be read by `mads.agents.columns.pieces`."""

    def grow(self, view: AttributeView, known: int) -> None:  # noqa: B027 - may stay empty
        """The pool has grown, `shares` and perhaps `labels` with it, of which `known` were there: fit what was learned to it."""

    @abstractmethod
    def score(self, view: AttributeView) -> np.ndarray:
        """Score of each sample of a slice, float64 [n]. Pure: no state changes, no dependence on the slice's borders."""

    def update(self, probes: ProbeRewards) -> None:  # noqa: B027 - may stay empty
        """Learn from a round's rewards; the agent has been judged already."""

    def restored(self) -> None:  # noqa: B027 - may stay empty
        """`memory` came from a checkpoint: derive from it what is derived."""

    def label_weights(self) -> np.ndarray:
        """What records show as the labels' weights, float64 [L]."""
        return self.weights

    # ------------------------------------------------------------ the protocol (mads.agents.base.Agent)

    def bind(self, view: AttributeView, rule: LearningRule) -> None:
        self.rule = rule
        self.labels = tuple(view.labels(self.attribute))
        self.shares = token_shares(view, self.attribute)
        self.weights = np.zeros(len(self.labels))
        self.statistics: LabelStatistics | None = None
        self.start(view)
        self._check_memory()

    def _check_memory(self) -> None:
        """What no checkpoint could hold is said before training, not at the first save."""
        kind = type(self).__name__
        for key in self.memory:
            if not hasattr(self, key):
                raise ValueError(f"agent {self.name!r}: {kind}.memory names {key!r}, which {kind}.start(view) does not set")
            try:
                json.dumps(_plain(getattr(self, key)), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"agent {self.name!r}: {kind}.{key} is in its memory, but no checkpoint can hold it: {error}"
                ) from None

    def rebind(self, view: AttributeView) -> None:
        """New labels have weight 0 and no statistics yet."""
        known = len(self.labels)
        self.labels = tuple(view.labels(self.attribute))
        self.shares = token_shares(view, self.attribute)
        new = len(self.labels) - known
        self.weights = np.append(self.weights, np.zeros(new))
        if self.statistics is not None:
            s = self.statistics
            self.statistics = LabelStatistics(
                np.append(s.mean, np.full(new, np.nan)),
                np.append(s.se, np.full(new, np.nan)),
                np.append(s.probes, np.zeros(new, np.int64)),
                np.append(s.tokens, np.zeros(new, np.int64)),
            )
        self.grow(view, known)

    def learn(self, probes: ProbeRewards) -> float:
        """R_A of the scores from before the update, over the probes (`LearningRule.judge`), then the update. For R_A a label's
        probes count as much as the label was chosen."""
        codes, counted = self.observe(probes), probes.importance * probes.targets
        taken = np.divide(self.mix_shares(probes), self.shares, out=np.zeros(len(self.labels)), where=self.shares > 0)
        reward = self.rule.judge(self.score(probes.view), probes.rewards, counted * taken[codes])
        self.update(probes)
        total = np.bincount(codes, counted, len(self.labels))
        scored = np.bincount(codes, counted * self.score(probes.view), len(self.labels))
        self.weights = np.divide(scored, total, out=self.weights.copy(), where=total > 0)
        return reward

    def mix_shares(self, probes: ProbeRewards) -> np.ndarray:
        """The labels' shares of what the run is being trained on, float64 [L], sum 1; before the first decision: of the pool."""
        if probes.chosen is None:
            return self.shares
        codes = label_codes(probes.chosen, self.attribute)
        tokens = np.bincount(codes, weights=probes.chosen.lengths, minlength=len(self.labels))
        return tokens / tokens.sum()

    def observe(self, probes: ProbeRewards) -> np.ndarray:
        """Keep the round's statistics by label; returns the probes' label codes."""
        codes = label_codes(probes.view, self.attribute)
        self.statistics = self.rule.statistics(codes, len(self.labels), probes.rewards, probes.targets, probes.importance)
        return codes

    def describe(self) -> list[LabelRecord]:
        records, weights = [], self.label_weights()
        for j, label in enumerate(self.labels):
            record = LabelRecord(label, float(weights[j]), pool_share=float(self.shares[j]))
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
        if self.memory:
            value["memory"] = {key: _plain(getattr(self, key)) for key in self.memory}
        return value

    def load_state(self, state: dict[str, Any]) -> None:
        if state["attribute"] != self.attribute or tuple(state["labels"]) != self.labels:
            raise ValueError(
                f"the checkpoint's agent {self.name!r} sees {state['attribute']!r} with labels {state['labels']}, this one sees "
                f"{self.attribute!r} with labels {list(self.labels)}; resume with the agents and the data of the checkpoint"
            )
        stored = state.get("memory", {})
        if set(stored) != set(self.memory):
            raise ValueError(
                f"the checkpoint's agent {self.name!r} remembers {sorted(stored)}, {type(self).__name__} remembers "
                f"{sorted(self.memory)}; resume with the agents of the checkpoint"
            )
        self.weights = np.array(state["weights"], dtype=np.float64)
        seen = state.get("statistics")
        self.statistics = seen and LabelStatistics(
            np.array([np.nan if v is None else v for v in seen["mean"]], dtype=np.float64),
            np.array([np.nan if v is None else v for v in seen["se"]], dtype=np.float64),
            np.array(seen["probes"], dtype=np.int64),
            np.array(seen["tokens"], dtype=np.int64),
        )
        for key in self.memory:
            held = getattr(self, key)
            setattr(self, key, np.array(stored[key], dtype=held.dtype) if isinstance(held, np.ndarray) else stored[key])
        self.restored()


def _plain(value: Any) -> Any:
    """JSON value; Python's floats come back bit for bit."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
