"""Mutants of Slurm's scripts and variables, and of the preflight; tests/mutants/mutants.py explains the fields."""

from types import SimpleNamespace

import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

SCRIPT, CLUSTER, VARIABLES = (f"unit/launch/test_{name}.py" for name in ("submit_script", "cluster_config", "slurm_variables"))
JUDGED = "e2e/test_preflight.py:test_what_ranks_say_is_judged"

MUTANTS = [
    Mutant(
        "overrides stand in double quotes",
        "mads.launch.script:shlex",
        lambda original: SimpleNamespace(quote=lambda word: f'"{word}"'),
        f"{SCRIPT}:check_quoting",
        red=("AssertionError", "FileNotFoundError", "ValueError"),
    ),
    Mutant(
        "a run that failed is queued again",
        "mads.launch.script:_requeue",
        lambda original: lambda most: original(most).replace("-eq 85", "-ne 0"),
        f"{SCRIPT}:check_requeue",
        args=(1, 0, 2, False),
    ),
    Mutant(
        "a job is queued again for ever",
        "mads.launch.script:_requeue",
        lambda original: lambda most: original(10**6),
        f"{SCRIPT}:check_requeue",
        args=(85, 2, 2, False),
    ),
    Mutant(
        "minutes and seconds are taken for hours",
        "mads.config.cluster:time_limit_s",
        lambda original: lambda text: 86400,
        f"{CLUSTER}:check_refused",
        args=(["cluster.time_limit=24:00"], ["hours"]),
    ),
    Mutant(
        "every node is thought to have as many tasks as the last",
        "mads.launch.slurm:tasks_per_node",
        lambda original: lambda text: [original(text)[-1]] * 4,
        f"{VARIABLES}:test_a_task_of_srun_knows_its_place",
    ),
    Mutant("clocks may differ", "mads.doctor.facts:CLOCK_S", lambda original: 1e9, JUDGED, red=("AssertionError",)),
    Mutant("no room is needed", "mads.doctor.facts:CHECKPOINTS", lambda original: 0, JUDGED, red=("ValueError",)),
]


def run_launch_mutated(name):
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_launch_mutant_is_caught(mutant):
    check_caught(mutant, run_launch_mutated)
