"""Mutants of the comparison; tests/mutants/mutants.py explains the fields."""

import dataclasses

import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

STATISTICS, PLAN, PAGE = (f"unit/compare/test_compare_{name}.py" for name in ("statistics", "plan", "page"))


def unpaired(original):
    """All of ours against all of theirs, whatever the seeds."""
    return lambda ours, theirs: original(dict(enumerate(ours.values())), dict(enumerate(theirs.values())))


MUTANTS = [
    Mutant(
        "the normal distribution in place of Student's",
        "mads.compare.statistics:t_quantile",
        lambda original: lambda confidence, freedom: original(confidence, 1e6),
        f"{STATISTICS}:check_paired_differences",
    ),
    Mutant(
        "differences are not taken within a seed",
        "mads.compare.statistics:paired",
        unpaired,
        f"{STATISTICS}:check_paired_from_module",
    ),
    Mutant(
        "Bonferroni in place of Holm",
        "mads.compare.summary:holm",
        lambda original: lambda p: {name: min(1.0, len(p) * value) for name, value in p.items()},
        f"{PAGE}:check_corrected",
    ),
    Mutant(
        "a place is where the curve comes down for the last time",
        "mads.compare.statistics:reach",
        lambda original: lambda points, level: dataclasses.replace(original(points, level), place=points[-1][0]),
        f"{STATISTICS}:check_place_over_seeds",
    ),
    Mutant(
        "selection costs nothing",
        "mads.compare.summary:flops",
        lambda original: lambda point: point["training_flops"],
        f"{PAGE}:check_compute",
    ),
    Mutant(
        "a branch decays over a share of the whole run",
        "mads.compare.plan:branch_at",
        lambda original: (
            lambda f, steps, c: dataclasses.replace(original(f, steps, c), start=round(f * steps) - round(c * steps))
        ),
        f"{PLAN}:check_branches",
    ),
    Mutant(
        "the frontier joins all dots",
        "test_scatter:frontier",
        lambda original: lambda dots: sorted(dots, key=lambda d: (d.x, d.y)),
        "unit/report/test_scatter.py:check_frontier",
        args=(False,),
    ),
    Mutant(
        "a strategy like another one comes before it",
        "mads.compare.plan:overrides_of",
        lambda original: lambda strategies, name: original(strategies, name)[::-1],
        f"{PLAN}:check_like",
    ),
]


def run_compare_mutated(name):
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    check_caught(mutant, run_compare_mutated)
