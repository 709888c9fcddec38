"""Mutants of rehearsals: what a rewind forgets shows. tests/mutants/mutants.py has the fields."""

import pytest
import torch
from mutants import Mutant
from test_mutants import check_caught, outcome

FILE = "dist/test_rehearsal.py"
RESTORE = "mads.train.snapshot:Snapshot.restore"


def _without(key):
    """A rewind that leaves this part of the optimizer's state as the steps have made it; key "weight": the masters."""

    def replace(original):
        def restore(self):
            held = self._engine.state.held()
            tensors = [flat if key == "weight" else state.get(key) for flat, state in held]
            stepped = [None if t is None else t.clone() for t in tensors]
            original(self)
            with torch.no_grad():
                for tensor, value in zip(tensors, stepped):
                    if value is not None:
                        tensor.copy_(value)

        return restore

    return replace


def _at_the_groups_rate(original):
    def step(self, batches, valid_tokens, rate):
        return original(self, batches, valid_tokens, self._engine.engine.optimizer.param_groups[0]["lr"])

    return step


def _as_many_as_in_training(original):
    from deepspeed.runtime.pipe import schedule

    class Fixed(schedule.TrainSchedule):
        def __init__(self, micro_batches, stages, stage_id):
            super().__init__(2, stages, stage_id)

    return type("schedule", (), vars(schedule) | {"TrainSchedule": Fixed})


RED = ("AssertionError", "Failed", "RuntimeError")  # the checksum of `undisturbed` is the first that sees most of them


def _mutant(name, target, replace, check, *args, red=RED):
    return Mutant(name, target, replace, f"{FILE}:{check}", world=2, args=args, red=red)


DP, PP = {"dp": 2}, {"pp": 2}
MUTANTS = [
    *[
        _mutant(f"a rewind forgets {what}, ZeRO {zero}", RESTORE, _without(key), "check_one_rehearsal", DP, zero)
        for key, what in (("weight", "master weights"), ("exp_avg", "momentum"), ("exp_avg_sq", "variance"), ("step", "the step"))
        for zero in (0, 1, 3)
    ],
    _mutant(
        "a rewind forgets counters and the loss scale",
        "mads.train.snapshot:Snapshot._plain",
        lambda original: lambda self: [],
        "check_one_rehearsal",
        DP,
        1,
    ),
    _mutant(
        "ZeRO 3 goes on with weights that it gathered before the rewind",
        "mads.train.snapshot:EngineRehearsal.rewind",
        lambda original: lambda self: self._snapshot.restore(),
        "check_one_rehearsal",
        DP,
        3,
    ),
    _mutant(
        "a rehearsal goes on with the rate of the step before",
        "mads.train.snapshot:EngineRehearsal.step",
        _at_the_groups_rate,
        "check_steps_are_those_of_training",
        DP,
        1,
    ),
    _mutant(
        "stages run as many micro-batches as in training",
        "mads.train.pipeline:schedule",
        _as_many_as_in_training,
        "check_any_cut",
        PP,
        1,
        red=("AssertionError", "StopIteration"),
    ),
    *[
        _mutant(
            f"undisturbed looks at the parameters alone, ZeRO {zero}",
            "mads.train.optimizer_state:OptimizerState.held",
            lambda original: lambda self: [],
            "check_a_trace_is_an_error",
            DP,
            zero,
        )
        for zero in (1, 3)
    ],
]


def run_mutated(name):
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_rehearsal_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)


def test_names_of_rehearsal_mutants_are_unique():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
