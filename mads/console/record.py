"""The decision: its header on the wire, and its record in the run folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mads.agents.base import LabelRecord
from mads.collectives import digest


@dataclass(frozen=True)
class DecisionHeader:
    """What travels, as int64 [3], before the ids: every rank checks what it then receives against it."""

    round: int
    count: int
    hash: int

    @classmethod
    def of(cls, round_: int, ids: np.ndarray) -> DecisionHeader:
        ids = np.ascontiguousarray(ids, dtype=np.int64)
        return cls(round_, len(ids), digest(round_, ids))

    def to_array(self) -> np.ndarray:
        return np.array([self.round, self.count, self.hash], dtype=np.int64)

    @classmethod
    def from_array(cls, array: np.ndarray) -> DecisionHeader:
        return cls(*(int(v) for v in array))


@dataclass
class DecisionRecord:
    """One line of decisions.jsonl.

    theta: agent -> collaborative weight used for this decision (empty for selections without agents)
    agent_rewards: agent -> R_A (Eq. 7), empty when the round had no rewards
    labels: agent or attribute -> LabelRecord list; selections without agents record the mix of every attribute here too
    chosen: samples chosen; chosen_tokens: their tokens; budget_tokens: what was asked for
    reused: chosen samples that had been trained on before; notes: anything that was not as asked (running short, merged labels)
    direction: reward direction's diagnostics, for example each parameter group's share of |v|^2
    states: agent -> its `state()` at this decision, after learning: with them, the data and the earlier decisions any sample's
        place can be computed again (mads.explain). What an agent hears of this decision is not in it
    seconds: phase -> wall seconds (reference, probes, update, decision with the scoring of the pool, exchange)
    """

    round: int
    step: int
    consumed_tokens: int
    selection: str
    theta: dict[str, float]
    agent_rewards: dict[str, float]
    labels: dict[str, list[LabelRecord]]
    chosen: int
    chosen_tokens: int
    budget_tokens: int
    reused: int
    hash: int
    notes: list[str] = field(default_factory=list)
    direction: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> DecisionRecord:
        value = json.loads(line)
        value["labels"] = {k: [LabelRecord(**r) for r in v] for k, v in value["labels"].items()}
        return cls(**value)
