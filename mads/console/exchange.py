"""How scores reach the console and how its decision reaches the world, over the control group alone.

A data-parallel group may lack rank 0 (tensor or pipeline parallel ranks), so ids are broadcast to every rank. Whatever one rank
finds wrong is told to all of them: a rank that raises alone leaves the others waiting in a collective.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mads.collectives import ReplicaMismatchError, all_gather_json, broadcast_array, gather_to_first
from mads.console.record import DecisionHeader
from mads.topology import Topology


class SelectionMismatchError(ReplicaMismatchError):
    """Ranks disagree about the agents, the scores' extent, or the decision. The message names the ranks."""


class RankFailedError(RuntimeError):
    """Another rank raised in a phase that all ranks take part in. The message names it and repeats its error."""


def raise_together(error: Exception | None, topology: Topology, phase: str) -> None:
    """Collective over all ranks: see `raise_in_group`."""
    raise_in_group(error, topology.group("control"), phase)


def raise_in_group(error: Exception | None, group, phase: str) -> None:
    """Collective: every rank passes its outcome of `phase`. If any rank failed, it raises its own error and all others raise too.

    Raises:
        RankFailedError: on the ranks that had no error themselves.
    """
    outcomes = all_gather_json(None if error is None else f"{type(error).__name__}: {error}", group)
    if error is not None:
        raise error
    failed = {rank: outcome for rank, outcome in enumerate(outcomes) if outcome is not None}
    if failed:
        listing = "; ".join(f"rank {rank}: {outcome}" for rank, outcome in failed.items())
        raise RankFailedError(f"{phase} failed on ranks {list(failed)}: {listing}")


def check_agents(agents: dict[str, Any], topology: Topology) -> None:
    """Collective: every rank must hold the same agents, in the same order, with the same attributes.

    Args:
        agents: agent's name -> what must be equal of it, a JSON value.

    Raises:
        SelectionMismatchError: on all ranks, naming each agent that is absent or different and where.
    """
    everywhere = all_gather_json(list(agents.items()), topology.group("control"))
    if all(value == everywhere[0] for value in everywhere):
        return
    by_rank = [dict(value) for value in everywhere]
    problems = []
    for name in sorted(set().union(*by_rank)):
        absent = [rank for rank, held in enumerate(by_rank) if name not in held]
        if absent:
            problems.append(f"agent {name!r} is absent on ranks {absent}")
        reference = next(held[name] for held in by_rank if name in held)
        different = [rank for rank, held in enumerate(by_rank) if name in held and held[name] != reference]
        if different:
            problems.append(f"agent {name!r} is not the same on ranks {different}")
    order = [rank for rank, value in enumerate(everywhere) if value != everywhere[0]]
    raise SelectionMismatchError("; ".join(problems) or f"ranks {order} hold the agents in another order than rank 0")


def gather_column(local: np.ndarray, topology: Topology, candidates: int) -> np.ndarray | None:
    """Collective: the values of the whole pool [candidates], in pool order, on rank 0; None elsewhere.

    Args:
        local: [n], values of this rank's slice of the pool, of one dtype; slices follow each other in rank order.

    Raises:
        SelectionMismatchError: on all ranks, if the slices do not add up to the pool.
    """
    group = topology.group("control")
    sizes = all_gather_json(len(local), group)
    if sum(sizes) != candidates:
        by_rank = {rank: size for rank, size in enumerate(sizes) if size}
        raise SelectionMismatchError(f"values of {sum(sizes)} samples arrived for a pool of {candidates}; by rank {by_rank}")
    return gather_to_first(local, group)


def broadcast_decision(round_: int, ids: np.ndarray | None, topology: Topology) -> np.ndarray:
    """Collective: the ordered ids, int64 [k], from rank 0 (`ids` is None elsewhere) to the world, verified on every rank.

    The header (round, count, hash) travels first. Each rank hashes what it received; all ranks compare all headers and hashes.

    Raises:
        SelectionMismatchError: on all ranks, naming those whose header or ids are not rank 0's, or that are in another round.
    """
    group = topology.group("control")
    is_source = topology.rank == 0
    header = DecisionHeader.of(round_, ids).to_array() if is_source else None
    received = DecisionHeader.from_array(broadcast_array(header, group, np.int64))
    ids = broadcast_array(ids if is_source else None, group, np.int64)
    computed = DecisionHeader.of(round_, ids)
    outcomes = all_gather_json([received.to_array().tolist(), computed.to_array().tolist()], group)
    truth = outcomes[0][0]
    bad = [rank for rank, (got, own) in enumerate(outcomes) if got != truth or own != truth]
    if bad:
        listing = "; ".join(f"rank {rank}: header {outcomes[rank][0]}, own {outcomes[rank][1]}" for rank in bad)
        raise SelectionMismatchError(
            f"the decision of round {round_} arrived damaged or out of step on ranks {bad}; "
            f"(round, count, hash) sent {truth}; {listing}"
        )
    return ids
