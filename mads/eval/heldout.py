"""Evaluation in the loop: loss on held-out documents by domain, and on the references' report part, which no reward ever saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mads import noise
from mads.data.pool import Pool
from mads.data.schema import DataError
from mads.eval.losses import FixedBatches, spread
from mads.train.interface import RewardModel


class Task(Protocol):
    """A reference task as evaluation sees it (mads.reward.reference.ReferenceTask)."""

    name: str

    def windows(self, part: str, limit: int, seed: int, round_: int = 0) -> list[np.ndarray]:
        """Token windows of `limit` examples of a part, drawn by hash."""


class HeldOut:
    """Fixed samples, drawn once by hash, so that every evaluation of every run on the same data sees the same text.

    Args:
        pool: the held-out part.
        attribute: losses are reported by its labels; "domain" if the pool has it.
        limit: held-out samples per label, and reference examples per task.
        further: attributes by whose labels losses are reported too, each on samples of its own.

    Raises:
        DataError: the pool lacks one of the attributes.
    """

    def __init__(
        self,
        model: RewardModel,
        pool: Pool,
        references: Sequence[Task],
        topology,
        seq_length: int,
        limit: int,
        rows: int,
        attribute: str = "domain",
        further: Sequence[str] = (),
    ):
        for name in (attribute, *further):
            if name not in pool.attributes:
                raise DataError(f"held-out losses are reported by {name!r}; the prepared data has only {sorted(pool.attributes)}")
        self.pool, self._model, self._topology, self._further = pool, model, topology, tuple(further)
        samples: list[np.ndarray] = []
        self._groups: list[tuple[str, str, slice]] = []  # kind, name, samples
        for kind, name in [("heldout", attribute), *((f"by {name}", name) for name in further)]:
            codes = np.asarray(pool.codes(name))
            for code, label in enumerate(pool.labels(name)):
                positions = np.flatnonzero(codes == code)
                order = np.argsort(noise.hash64(0, "heldout", 0, pool.ids[positions]), kind="stable")
                self._add(kind, label, pool.tokens(np.sort(positions[order[:limit]])), samples)
        for task in references:
            self._add("references", task.name, task.windows("report", limit, seed=0), samples)
        self._batches = FixedBatches(samples, seq_length, rows)

    def _add(self, kind: str, name: str, group: list[np.ndarray], samples: list[np.ndarray]) -> None:
        if sum(len(s) - 1 for s in group) > 0:  # a label without held-out text is not reported
            self._groups.append((kind, name, slice(len(samples), len(samples) + len(group))))
            samples += group

    def evaluate(self) -> dict:
        """Mean loss per target in nats: {"heldout": {label: loss}, "references": {task: loss}, "heldout_mean",
        "references_mean"}; the means weigh labels, and tasks, equally. With further attributes also
        {"heldout_by": {attribute: {label: loss}}}. Collective."""
        losses = spread(self._batches, self._model.sample_losses, self._topology)
        result: dict = {"heldout": {}, "references": {}}
        by = {f"by {name}": {} for name in self._further}
        for kind, name, part in self._groups:
            (by if kind in by else result)[kind][name] = float(losses[part].sum() / self._batches.targets[part].sum())
        for kind in ("heldout", "references"):
            values = list(result[kind].values())
            result[f"{kind}_mean"] = float(np.mean(values)) if values else None
        if by:
            result["heldout_by"] = {name: by[f"by {name}"] for name in self._further}
        return result
