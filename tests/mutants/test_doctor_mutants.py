"""Mutants of the rules of parallel sizes and of the doctor's estimates; tests/mutants/mutants.py explains the fields."""

import dataclasses

import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

RULES, MEMORY = "unit/config/test_parallel_rules.py", "dist/test_doctor_memory.py"
COMMAND, STATES = "unit/doctor/test_doctor_command.py", "unit/doctor/test_doctor_states.py"


MUTANTS = [
    Mutant(
        "the batch is cut over all ranks",
        "mads.config.parallel_rules:replica_size",
        lambda original: lambda parallel: 1,
        f"{RULES}:test_the_batch_is_cut_over_data_parallel_ranks_only",
        red=("ConfigError",),
    ),
    Mutant(
        "ZeRO's options are not looked at",
        "mads.config.parallel_rules:_zero_options",
        lambda original: lambda parallel: iter(()),
        f"{RULES}:check_unknown_options_are_refused",
    ),
    Mutant(
        "sequence parallelism keeps whole hidden states",
        "mads.doctor.activations:Setting.cut",
        lambda original: property(lambda setting: 1),
        f"{MEMORY}:check_activations",
        world=2,
        args=([(2, 1, True, "none", 0.0)],),
    ),
    Mutant(
        "a reward direction is thought to hold three vectors",
        "mads.doctor.states:REWARD_VECTORS",
        lambda original: 3,
        f"{STATES}:test_a_reward_direction_holds_so_many_vectors_at_once",
    ),
    Mutant(
        "a pipeline is thought to hold one micro-batch",
        "mads.doctor.estimate:batch_of",
        lambda original: lambda config, world: dataclasses.replace(original(config, world), passes=1),
        f"{COMMAND}:test_a_longer_pipeline_holds_fewer_micro_batches_on_later_stages",
    ),
]


def run_doctor_mutated(name):
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    check_caught(mutant, run_doctor_mutated)
