"""Mutants of the watchdog. See mutants.py for the scheme."""

from dataclasses import replace

import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

VERDICT, BEATS = "unit/train/test_verdict.py", "dist/test_watchdog_ranks.py:check_beats_on_own_corpus"


def _any_rank_that_waits_is_hung(original):
    return lambda reports, now: max(report.stalled(now) for report in reports.values())


def _silence_is_overlooked(original):
    return lambda reports, now, patience: []


def _collectives_are_not_recognised(original):
    def culprits(reports, now, limit):
        return original({rank: replace(report, waits=False) for rank, report in reports.items()}, now, limit)

    return culprits


def _a_stopped_process_goes_on_counting(original):
    return lambda self: self._source()


def _passes_do_not_beat(original):
    def losses(self, batch, weights=None):
        return self._engine.module(batch.tokens, batch.labels, batch.positions, batch.segments, weights=weights)

    return losses


def _steps_do_not_beat(original):
    def run(self, *args):
        from mads.train.pulse import Pulse

        pulse, self.pulse = self.pulse, Pulse()
        original(self, *args)
        self.pulse = pulse

    return run


MUTANTS = [
    Mutant(
        "a rank that waits counts as hung",
        "mads.train.verdict:hung_for",
        _any_rank_that_waits_is_hung,
        f"{VERDICT}:check_one_rank_that_moves_is_enough",
    ),
    Mutant(
        "silence is overlooked",
        "mads.train.verdict:silent_ranks",
        _silence_is_overlooked,
        f"{VERDICT}:check_culprits",
        args=("silent, others wait",),
    ),
    Mutant(
        "collectives are not recognised",
        "mads.train.verdict:culprits",
        _collectives_are_not_recognised,
        f"{VERDICT}:check_culprits",
        args=("the one behind waits",),
    ),
    Mutant(
        "a stopped process goes on counting",
        "mads.train.watchdog:Clock.__call__",
        _a_stopped_process_goes_on_counting,
        f"{VERDICT}:check_suspension_is_no_time",
    ),
]
ON_RANKS = [
    Mutant("evaluation does not beat", "mads.train.passes:WholePasses._losses", _passes_do_not_beat, BEATS, world=2),
    Mutant("steps do not beat", "mads.train.engine:TrainEngine._run", _steps_do_not_beat, BEATS, world=2),
]


def run_mutated(name):
    return outcome(next(m for m in [*MUTANTS, *ON_RANKS] if m.name == name))


@pytest.mark.parametrize("mutant", [*MUTANTS, *ON_RANKS], ids=lambda m: m.name)
def test_watchdog_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)
