"""Checks of a running job: what must be equal on several ranks is hashed and compared; a difference stops every rank by name.

Compared after a step (DESIGN.md section 4):

    decision     over all ranks: the decided sample ids
    batch        over all ranks: the sample ids of the global batch
    tokens       over the ranks of one model replica: its own micro-batches; and no two replicas train on the same ones
    replicated   over tensor-parallel ranks: parameters that each of them holds whole
    everything   over data- and context-parallel ranks: all parameters (ZeRO 3 cuts them there, and keeps no replica)
    copies       a tied weight on the last pipeline stage with that of the first
    starts       over tensor-parallel ranks, once: shards of a parameter must not be copies of each other

Every rank sends one small dictionary and judges all of them, so that all ranks raise together. Parameters travel as one number a
rank; only when those differ are the numbers of the single parameters exchanged, which name the one that differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mads import collectives
from mads.collectives import ReplicaMismatchError, digest
from mads.data.loader import StepBatch
from mads.layout import is_copy, layout_of
from mads.topology import AXES, Grid
from mads.train.checksum import checksums

FIRST_STEPS = 3  # of every process: a resumed run is checked as a new one is
SHOWN_RANKS, SHOWN_PROBLEMS = 8, 8
Report = dict[str, Any]

# Field of a report -> the axes that must not matter to it, and what it is called.
EQUAL = {
    "step": (AXES, "the step"),
    "decision": (AXES, "the decision"),
    "batch": (AXES, "the global batch"),
    "tokens": (("pp", "cp", "tp"), "the micro-batches of a model replica"),
    "replicated": (("tp",), "a parameter that tensor-parallel ranks replicate"),
    "everything": (("dp", "cp"), "a parameter that data-parallel ranks replicate"),
}
PARAMETERS = ("replicated", "everything")


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it must be.

    what: in words; field: the entry of the reports that tells it; name: logical name of a parameter, "" if none is known
    holders: digest -> ranks
    """

    what: str
    field: str
    name: str
    holders: dict[Any, list[int]] = field(default_factory=dict)

    @property
    def ranks(self) -> set[int]:
        return {rank for ranks in self.holders.values() for rank in ranks}


# ---------------------------------------------------------------- judging: pure, on the reports of all ranks


def judge(reports: list[Report], grid: Grid) -> list[Problem]:
    """What is wrong in the reports of all ranks, which are in rank order. Every field of a report maps keys ("" or parameter
    names) to digests; None stands for something that must not be compared."""
    problems = []
    for name, (axes, what) in EQUAL.items():
        for ranks in grid.groups(*axes):
            problems += _differences(reports, ranks, name, what)
    problems += _shared_tokens(reports, grid)
    problems += _untied(reports, grid)
    for ranks in grid.groups("tp"):
        problems += _twins(reports, ranks)
    return problems


def _by_value(reports: list[Report], ranks: list[int], name: str, key: str) -> dict[Any, list[int]]:
    holders: dict[Any, list[int]] = {}
    for rank in ranks:
        holders.setdefault(reports[rank].get(name, {}).get(key), []).append(rank)
    return holders


def _differences(reports: list[Report], ranks: list[int], name: str, what: str) -> Iterator[Problem]:
    keys = sorted({key for rank in ranks for key in reports[rank].get(name, {})})
    for key in keys:
        holders = _by_value(reports, ranks, name, key)
        if len(holders) > 1:
            yield Problem(f"{what} differs", name, key, holders)


def _shared_tokens(reports: list[Report], grid: Grid) -> Iterator[Problem]:
    leaders = [grid.rank(dp=d) for d in range(grid.dp)]
    for value, ranks in _by_value(reports, leaders, "tokens", "").items():
        if value is not None and len(ranks) > 1:
            yield Problem("different model replicas trained on the same micro-batches", "tokens", "", {value: ranks})


def _untied(reports: list[Report], grid: Grid) -> Iterator[Problem]:
    for ranks in grid.groups("pp"):
        first, last = ranks[0], ranks[-1]
        for key, value in sorted(reports[last].get("copies", {}).items()):
            original = reports[first].get("originals", {}).get(key)
            if original != value:
                what = "a tied weight differs between the first and the last pipeline stage"
                yield Problem(what, "copies", key, {original: [first], value: [last]})


def _twins(reports: list[Report], ranks: list[int]) -> Iterator[Problem]:
    for key in sorted(reports[ranks[0]].get("starts", {})):
        for value, same in _by_value(reports, ranks, "starts", key).items():
            if value is not None and len(same) > 1:
                yield Problem("tensor-parallel shards of a parameter are copies of each other", "starts", key, {value: same})


# ---------------------------------------------------------------- telling


def _shown(ranks: list[int], grid: Grid, places: bool) -> str:
    listed = [str(r) for r in ranks[:SHOWN_RANKS]]
    if places:
        listed = [f"{r} ({' '.join(f'{a}={grid.coordinates(r)[a]}' for a in AXES)})" for r in ranks[:SHOWN_RANKS]]
    more = f" and {len(ranks) - SHOWN_RANKS} more" if len(ranks) > SHOWN_RANKS else ""
    return f"ranks [{', '.join(listed)}{more}]"


def explain(problems: list[Problem], grid: Grid, step: int) -> str:
    """The message: what differs, the parameter, who holds what, and the rank that every difference of it has in common."""
    lines = [f"after step {step}: {len(problems)} difference{'s' if len(problems) > 1 else ''} between ranks"]
    for problem in problems[:SHOWN_PROBLEMS]:
        groups = sorted(problem.holders.items(), key=lambda item: -len(item[1]))
        most = len(groups[0][1])
        crowd = len(groups) > 1 and most > len(groups[1][1])  # more ranks hold this than anything else: the others are odd
        told = []
        for i, (value, ranks) in enumerate(groups):
            held = "nothing" if value is None else f"{value % 2**64:#x}"
            told.append(f"{_shown(ranks, grid, places=not (crowd and i == 0))}: {held}")
        lines.append(f"  {problem.what}{f', {problem.name}' if problem.name else ''}: {'; '.join(told)}")
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    for name in sorted({p.name for p in problems if p.name}):
        sets = [p.ranks for p in problems if p.name == name]
        common = sorted(set.intersection(*sets))
        if len(sets) > 1 and len(common) == 1:
            lines.append(f"  every difference of {name} has {_shown(common, grid, places=True)} in it")
    lines.append("resume from a checkpoint written before; if it comes again, look for a fault in the ranks that are named")
    return "\n".join(lines)


# ---------------------------------------------------------------- reporting and checking: collective


class ReplicaGuard:
    """Compares what must be equal on the ranks of a job. Made once a process, on every rank, before its first step.

    Args:
        engine: .parameters, .topology, .zero_stage, .device, and under ZeRO 3 .state.owned_length, as of mads.train.engine.
        interval: steps between checks, after the first ones.
    """

    def __init__(self, engine, interval: int):
        self._engine, self._topology, self._interval = engine, engine.topology, interval
        self._begun: int | None = None
        self._tied: list[str] | None = None
        # Now, because a step moves equal shards apart. Sent with the first report.
        self._starts: dict[str, int | None] = self._shard_starts() if self._topology.size("tp") > 1 else {}

    def due(self, step: int) -> bool:
        """Whether step `step` (from 1) is one of the first of this process, or of those that `interval` counts out."""
        if self._begun is None:
            self._begun = step
        return step < self._begun + FIRST_STEPS or step % self._interval == 0

    def check(self, step: int, batch: StepBatch, pending: np.ndarray) -> None:
        """Compare this rank with all others.

        Args:
            step: the step just taken.
            batch: what it trained on.
            pending: sample ids of the decision in use, int64.

        Raises:
            ReplicaMismatchError: on every rank: what differs, the parameter's name, the ranks and their coordinates.
        """
        sums = self._parameter_sums()
        report = self._report(step, batch, pending, sums)
        problems = self._exchange(report)
        if any(p.field in PARAMETERS for p in problems):
            problems = self._exchange(report | {name: self._selected(sums, name) for name in PARAMETERS})
        self._starts = {}
        if problems:
            raise ReplicaMismatchError(explain(problems, self._topology.grid, step))

    def _exchange(self, report: Report) -> list[Problem]:
        return judge(collectives.all_gather_json(report, self._topology.group("control")), self._topology.grid)

    def _report(self, step: int, batch: StepBatch, pending: np.ndarray, sums: dict[str, int]) -> Report:
        tied = self._tied_names()
        own_copies = {n: s for n, s in sums.items() if n in tied}
        last = self._topology.is_last_stage
        return {
            "step": {"": step},
            "decision": {"": digest(pending)},
            "batch": {"": digest(batch.sample_ids)},
            "tokens": {"": _tokens_digest(batch)},
            **{name: {"": digest(np.array(list(self._selected(sums, name).values())))} for name in PARAMETERS},
            "copies" if last else "originals": own_copies,
            "starts": self._starts,
        }

    # ------------------------------------------------------------ this rank's parameters

    def _piece(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """What this rank holds of a parameter. What ZeRO 3 pads its last piece with is left out: nobody ever wrote it."""
        if self._engine.zero_stage < 3:
            return parameter.data
        return parameter.ds_tensor.flatten()[: self._engine.state.owned_length(parameter)]

    def _parameter_sums(self) -> dict[str, int]:
        names = [name for name, _ in self._engine.parameters]
        return dict(zip(names, checksums((self._piece(p) for _, p in self._engine.parameters), self._engine.device)))

    def _selected(self, sums: dict[str, int], which: str) -> dict[str, int]:
        if which == "everything":
            return sums if self._engine.zero_stage < 3 else {}
        return {name: sums[name] for name, p in self._engine.parameters if not layout_of(p).sharded}

    def _shard_starts(self) -> dict[str, int | None]:
        """Checksums of the sharded parameters; None for one whose numbers are all the same (a bias of zeros is no copy)."""
        sharded = [(name, self._piece(p)) for name, p in self._engine.parameters if layout_of(p).sharded]
        sums = checksums((piece for _, piece in sharded), self._engine.device)
        varied = [piece.numel() > 1 and bool((piece != piece.flatten()[0]).any()) for _, piece in sharded]
        return {name: value if moves else None for (name, _), value, moves in zip(sharded, sums, varied)}

    def _tied_names(self) -> list[str]:
        """Names of the weights that the last stage holds a copy of; asked for once."""
        if self._topology.size("pp") == 1:
            return []
        if self._tied is None:
            own = [name for name, p in self._engine.parameters if is_copy(p)]
            told = collectives.all_gather_json(own, self._topology.group("control"))
            self._tied = sorted({name for names in told for name in names})
        return self._tied


def _tokens_digest(batch: StepBatch) -> int | None:
    """Digest of this rank's micro-batches; None if none of them has a target."""
    if not any(m.valid_tokens for m in batch.micro_batches):
        return None
    return digest(*(t.cpu().numpy() for m in batch.micro_batches for t in (m.tokens, m.labels, m.positions, m.segments)))
