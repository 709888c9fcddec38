"""Mutants of preemption. See mutants.py for the scheme."""

import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

CHECK = "dist/test_preemption_ranks.py:check_on_own_corpus"


def _no_save_when_told_to_stop(original):
    return lambda self: None if self.preemption.stopping else original(self)


def _signals_are_forgotten(original):
    return lambda self: False


MUTANTS = [
    Mutant(
        "a preempted run leaves without a checkpoint",
        "mads.train.loop:Trainer._save",
        _no_save_when_told_to_stop,
        CHECK,
        world=2,
        args=("train",),
        red=("AssertionError", "FileNotFoundError"),
    ),
    Mutant(
        "signals are forgotten", "mads.train.signals:Preemption.answer", _signals_are_forgotten, CHECK, world=2, args=("train",)
    ),
]


def run_mutated(name):
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_preemption_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)
