"""Mutants of the engine, its passes and its pipeline stages: a layout that is wrong must differ from one process."""

import pytest
import torch
from mutants import Mutant
from test_mutants import check_caught, outcome

LAYOUTS = "layouts.py"
TIED, UNTIED = ["model.tie_embeddings=true"], ["model.tie_embeddings=false"]


def _always_marked_as_sharded(original):
    def mark(parameter, *rest, **more):
        marked = original(parameter, *rest, **more)
        marked.tensor_model_parallel = True
        return marked

    return mark


def _never_marked_as_sharded(original):
    def mark(parameter, *rest, **more):
        marked = original(parameter, *rest, **more)
        marked.tensor_model_parallel = False
        return marked

    return mark


def _copies_are_counted(original):
    from mads.layout import layout_of

    return lambda parameter, rank: layout_of(parameter).sharded or rank == 0


def _copies_are_not_marked(original):
    def index(self):
        found = original(self)
        for parameter in self.parameters():
            parameter.ds_pipe_replicated = False
        return found

    return index


def _of_this_rank(original):
    def gradient_norm(self, gradients):
        squares = [torch.linalg.vector_norm(g).double().square() for g in gradients.values()]
        return torch.stack(squares).sum().sqrt()

    return gradient_norm


def _keyed_by_local_row(original):
    def draws(self, step, micro_batch):
        from types import SimpleNamespace

        alone = SimpleNamespace(size=lambda axis: 1, coordinate=lambda axis: 0)
        kept, self.topology = self.topology, alone
        try:
            return original(self, step, micro_batch)
        finally:
            self.topology = kept

    return draws


def _seeded_by_stage(original):
    def specs(config, placement, seed=0, **rest):
        return original(config, placement, seed=seed + torch.distributed.get_rank(), **rest)

    return specs


def _shares_are_not_summed(original):
    return lambda self, shares: shares


def _untied_gradient(original):
    def gradient(self, batches, weights):
        kept = type(self._stage).get_tied_weights_and_groups
        type(self._stage).get_tied_weights_and_groups = lambda stage: []
        try:
            return original(self, batches, weights)
        finally:
            type(self._stage).get_tied_weights_and_groups = kept

    return gradient


def _only_shards_of_rank_0_move(original):
    """A finite difference that perturbs the first tensor-parallel rank's pieces alone."""
    from contextlib import contextmanager

    @contextmanager
    def shifted(self, direction, scale):
        here = scale if self._topology.coordinate("tp") == 0 else 0.0
        with original(self, direction, here):
            yield

    return shifted


def _mutant(name, target, replace, world, grid, zero, more=(), check="check_layout"):
    return Mutant(name, target, replace, f"{LAYOUTS}:{check}", world=world, args=(grid, zero, list(more)))


PIPE, TP, CP = {"pp": 2}, {"tp": 2}, {"cp": 2}
MUTANTS = [
    _mutant("G2: a replicated weight is marked as sharded", "mads.tensor.init:mark", _always_marked_as_sharded, 2, TP, 1),
    _mutant("G2: a sharded weight is not marked as such", "mads.tensor.init:mark", _never_marked_as_sharded, 2, TP, 3),
    _mutant("G1: replicas count on every rank", "mads.train.engine:counts_on", lambda original: lambda p, rank: True, 2, TP, 0),
    _mutant("G1: a tied copy counts too", "mads.train.engine:counts_on", _copies_are_counted, 2, PIPE, 0, TIED),
    _mutant(
        "G2: DeepSpeed counts a tied copy too",
        "mads.train.pipeline:Stage._index_tied_modules",
        _copies_are_not_marked,
        2,
        PIPE,
        1,
        TIED,
    ),
    _mutant("G4: the norm is this rank's", "mads.train.engine:Engine.gradient_norm", _of_this_rank, 2, TP, 0),
    _mutant(
        "P3: tied gradients are not summed over the stages",
        "mads.train.pipeline:Stage.get_tied_weights_and_groups",
        lambda original: lambda self: [],
        2,
        PIPE,
        0,
        TIED,
    ),
    _mutant("P6: start values depend on the stage", "mads.train.pipeline:piece_specs", _seeded_by_stage, 2, PIPE, 0, UNTIED),
    _mutant(
        "P2: the loss is divided by the accumulation steps once more",
        "mads.train.pipeline:_StageEngine._INSTRUCTION_MAP",
        lambda original: {k: v for k, v in original.items() if k.__name__ != "BackwardPass"} | _plain_backward(),
        2,
        PIPE,
        0,
    ),
    _mutant(
        "Z1: ZeRO 3 cuts over data-parallel ranks alone",
        "mads.train.engine:MPU",
        lambda original: lambda topology, zero_stage: original(topology),
        2,
        CP,
        3,
    ),
    _mutant(
        "Z1: ZeRO 3 divides by the ranks that share a sequence too",
        "mads.topology:MPU.get_sequence_parallel_world_size",
        lambda original: lambda self: self._t.size("cp"),
        2,
        CP,
        3,
        ["parallel.zero_options.reduce_scatter=false"],
    ),
    _mutant(
        "Z4: ranks that share a sequence are not averaged over",
        "mads.train.engine:data_ranks",
        lambda original: lambda topology, zero_stage: topology.size("dp"),
        4,
        {"pp": 2, "cp": 2},
        0,
    ),
    _mutant(
        "R1: replicas drop the same entries",
        "mads.train.engine:Engine._draws",
        _keyed_by_local_row,
        2,
        {"dp": 2},
        0,
        ["model.hidden_dropout=0.1"],
    ),
    _mutant(
        "X3: losses stay on the last stage",
        "mads.train.reward_model:EngineRewardModel._summed_over_replica",
        _shares_are_not_summed,
        2,
        PIPE,
        0,
    ),
    _mutant(
        "X3: the direction lacks one use of a tied weight",
        "mads.train.passes:PipelinePasses.gradient",
        _untied_gradient,
        2,
        PIPE,
        0,
        TIED,
    ),
    _mutant(
        "X3: replicas count on every rank of a direction",
        "mads.train.reward_model:counts_on",
        lambda original: lambda p, rank: True,
        2,
        TP,
        1,
    ),
    _mutant(
        "X3: a finite difference moves the first rank's shards alone",
        "mads.train.reward_model:EngineRewardModel.shifted",
        _only_shards_of_rank_0_move,
        2,
        TP,
        1,
        check="check_rewards",
    ),
    _mutant(
        "X3: losses of every tensor-parallel rank are added",
        "mads.train.engine:Engine.counts_losses",
        lambda original: property(lambda self: True),
        2,
        TP,
        1,
    ),
]


def _plain_backward():
    from deepspeed.runtime.pipe import schedule
    from deepspeed.runtime.pipe.engine import PipelineEngine

    return {schedule.BackwardPass: PipelineEngine._exec_backward_pass}


def run_mutated(name):
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)


def test_names_of_layout_mutants_are_unique():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
