"""Mutants of what a run tells of itself. See mutants.py for the scheme."""

import os

import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

PROFILE = "unit/train/test_step_profiler.py:check_window"
REPLACED = "unit/watch/test_follow.py:check_replaced"
SAME_RUN = "unit/logging/test_wandb_sink.py:check_same_run"
FLOPS = "unit/model/test_shape.py:test_n2_flops_of_every_model_config_are_the_counters"


def _goes_on(original):
    """The file counts as the one that was read before, if it is not shorter."""

    def read(self):
        if self._file is not None and self.path.exists():
            found = os.stat(self.path)
            self._file = (found.st_dev, found.st_ino)
        return original(self)

    return read


def _without_attention(original):
    def flops(config, seq_length):
        return original(config, 0)

    return flops


MUTANTS = [
    Mutant(
        "a profile ends a step late",
        "mads.train.profile:StepProfiler.after",
        lambda original: lambda self, step: original(self, step - 1),
        PROFILE,
        args=(range(1, 10), "steps-3-6"),
    ),
    Mutant(
        "a profile begins whenever the run does",
        "mads.train.profile:StepProfiler.before",
        lambda original: lambda self, step: original(self, self.first if self._running is None and step >= self.first else step),
        PROFILE,
        args=(range(4, 9), None),
    ),
    Mutant("a file that was replaced is read on", "mads.watch.follow:Tail.read", _goes_on, REPLACED, args=(False,)),
    Mutant(
        "every start of a run is a W&B run of its own",
        "mads.logging.wandb:stored_run_id",
        lambda original: lambda run_dir, run_id=None: os.urandom(4).hex(),
        SAME_RUN,
    ),
    Mutant("attention costs nothing", "test_shape:flops_per_token", _without_attention, FLOPS, args=("nano", 128)),
]
GREEN = sorted({(m.check, m.args) for m in MUTANTS}, key=str)


def run_mutated(name: str) -> str | None:
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)


@pytest.mark.parametrize("check, args", GREEN)
def test_checks_are_green_where_nothing_is_broken(check, args):
    assert outcome(Mutant("nothing", "mads.paths:inside", lambda same: same, check, args=args)) is None
