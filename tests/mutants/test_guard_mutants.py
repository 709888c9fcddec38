"""Mutants of the topology, of the pipeline's schedule and of the runtime checks; tests/mutants/mutants.py explains the fields."""

import pytest
import torch
from mutants import Mutant
from test_mutants import check_caught, outcome

GUARD, GROUPS = "dist/test_replica_guard.py", "dist/test_topology_groups.py"
JUDGE, SCHEDULE, MPU = "unit/train/test_judge.py", "unit/train/test_pipeline_schedule.py", "unit/topology/test_mpu.py"


def _without(*fields):
    """judge() that does not look at some fields of the reports."""
    return lambda original: (
        lambda reports, grid: original([{k: v for k, v in r.items() if k not in fields} for r in reports], grid)
    )


def _only_this_rank(original):
    def all_gather_json(value, group):
        from mads.collectives import group_size

        return [value] * group_size(group)

    return all_gather_json


def _odd_ranks_backwards(original):
    def named_groups(grid):
        named = original(grid)
        return named if torch.distributed.get_rank() % 2 == 0 else dict(reversed(named.items()))

    return named_groups


def _sends_before_it_receives(original):
    def steps(self):
        for commands in original(self):
            sends = [c for c in commands if c.name.startswith("Send")]
            yield sends + [c for c in commands if c not in sends]

    return steps


def _a_forward_too_many(original):
    """Warm-up of one forward more than the stages behind need, as a GPipe schedule would have."""

    def steps(self):
        commands = list(original(self))
        first = next(i for i, step in enumerate(commands) if any(c.name == "BackwardPass" for c in step))
        later = next((i for i in range(first, len(commands)) if any(c.name == "ForwardPass" for c in commands[i])), None)
        if later is not None:
            commands[first], commands[later] = commands[later], commands[first]
        yield from commands

    return steps


MUTANTS = [
    Mutant(
        "the grid is cut with data-parallel ranks next to each other",
        "mads.topology:Grid.coordinates",
        lambda original: (
            lambda self, rank: (
                original(self, rank)
                | {"dp": rank % self.dp, "tp": rank // self.dp % self.tp, "cp": rank // self.dp // self.tp % self.cp}
            )
        ),
        "unit/topology/test_grid.py:check_every_grid",
    ),
    Mutant(
        "groups over two axes hold the ranks of one",
        "mads.topology:Grid.groups",
        lambda original: lambda self, *axes: original(self, *axes[-1:]),
        "unit/topology/test_grid.py:check_every_grid",
    ),
    Mutant(
        "the embedding group joins the first two stages",
        "mads.topology:named_groups",
        lambda original: lambda grid: original(grid) | {"embedding": [ranks[:2] for ranks in grid.groups("pp")]},
        f"{GROUPS}:check_new_topology",
        world=4,
        args=({"pp": 4},),
    ),
    Mutant(
        "ranks create their groups in an order of their own",
        "mads.topology:named_groups",
        _odd_ranks_backwards,
        f"{GROUPS}:check_order",
        world=4,
    ),
    Mutant(
        "the mpu has no sequence names",
        "mads.topology:MPU.get_sequence_data_parallel_group",
        lambda original: property(lambda self: (_ for _ in ()).throw(AttributeError("no such name"))),
        f"{MPU}:check_names",
    ),
    Mutant(
        "gradients are reduced over data parallel alone",
        "mads.topology:MPU.get_sequence_data_parallel_group",
        lambda original: lambda self: self._t.group("dp"),
        f"{GROUPS}:check_groups",
        world=4,
        args=([{"dp": 2, "cp": 2}],),
    ),
    Mutant(
        "a stage sends before it receives",
        "deepspeed.runtime.pipe.schedule:TrainSchedule.steps",
        _sends_before_it_receives,
        f"{SCHEDULE}:check_train",
        args=(4, 6),
    ),
    Mutant(
        "a stage runs one forward more ahead",
        "deepspeed.runtime.pipe.schedule:TrainSchedule.steps",
        _a_forward_too_many,
        f"{SCHEDULE}:check_train",
        args=(4, 6),
    ),
    Mutant(
        "a stage keeps one buffer less",
        "deepspeed.runtime.pipe.schedule:TrainSchedule.num_pipe_buffers",
        lambda original: lambda self: max(1, original(self) - 1),
        f"{SCHEDULE}:check_train",
        args=(4, 6),
    ),
    Mutant(
        "a batch that differs on a rank goes unseen",
        "mads.train.invariants:digest",
        lambda original: lambda *parts: original(*parts) if len(parts) > 1 else 0,
        f"{GUARD}:check_breaks",
        world=2,
        args=({"dp": 2}, (("batch", 1),)),
    ),
    Mutant(
        "ranks judge what they sent themselves",
        "mads.train.invariants:collectives.all_gather_json",
        _only_this_rank,
        f"{GUARD}:check_breaks",
        world=2,
        args=({"tp": 2}, (("norm", 1),)),
        red=("Failed", "AssertionError", "ReplicaMismatchError"),  # its shards look like copies of each other
    ),
    Mutant(
        "parameters replicated over tensor parallel are not compared",
        "mads.train.invariants:judge",
        _without("replicated"),
        f"{GUARD}:check_breaks",
        world=2,
        args=({"tp": 2}, (("norm", 1),)),
    ),
    Mutant(
        "data-parallel replicas are not compared",
        "mads.train.invariants:judge",
        _without("everything"),
        f"{GUARD}:check_breaks",
        world=2,
        args=({"dp": 2}, (("row", 1),)),
    ),
    Mutant(
        "tied copies are not compared",
        "mads.train.invariants:judge",
        _without("copies"),
        f"{GUARD}:check_breaks",
        world=2,
        args=({"pp": 2}, (("embedding.weight", 1),)),
    ),
    Mutant(
        "own micro-batches are not compared",
        "mads.train.invariants:judge",
        _without("tokens"),
        f"{GUARD}:check_breaks",
        world=2,
        args=({"tp": 2}, (("tokens", 1),)),
    ),
    Mutant(
        "shards are compared after a step only",
        "mads.train.invariants:ReplicaGuard._report",
        lambda original: lambda self, *arguments: original(self, *arguments) | {"starts": self._shard_starts()},
        f"{GUARD}:check_copied_shards",
        world=2,
        args=({"tp": 2},),
    ),
    Mutant(
        "a checksum takes the sum of the bits alone",
        "mads.train.checksum:torch.arange",
        lambda original: lambda *arguments, **rest: original(*arguments, **rest) * 0 + 1,
        f"{JUDGE}:check_checksums",
    ),
    Mutant(
        "parallel ranks of one stage are taken for replicas",
        "mads.train.invariants:EQUAL",
        lambda original: original | {"everything": (("dp", "tp"), "x")},
        f"{JUDGE}:check_single_changes",
        args=((1, 2, 1, 2),),
    ),
]


def run_mutated(name):
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)


def test_names_of_guard_mutants_are_unique():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
