"""Mutants of the MFU table. See mutants.py for the scheme."""

import copy

import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

TABLE = "unit/benchmarks/test_mfu.py"


def _believes(key, value):
    """What the run recorded under `key` is taken for `value`."""

    def replace(original):
        def findings(cell, recorded, *rest):
            recorded = copy.deepcopy(recorded)
            recorded["resolved"][key] = value
            return original(cell, recorded, *rest)

        return findings

    return replace


def _without(name):
    """The finding is swallowed."""
    return lambda original: lambda machine, cell: (f for f in original(machine, cell) if f.name != name)


MUTANTS = [
    Mutant(
        "sdpa in place of flash-attn is not seen",
        "test_mfu:run_findings",
        _believes("attention", "flash"),
        f"{TABLE}:check_after",
        args=("attention", "sdpa"),
    ),
    Mutant(
        "fp32 in place of bf16 is not seen",
        "test_mfu:run_findings",
        _believes("precision", "bf16"),
        f"{TABLE}:check_after",
        args=("precision", "fp32"),
    ),
    Mutant(
        "links between tensor-parallel ranks are not looked at",
        "test_mfu:machine_findings",
        _without("nvlink"),
        f"{TABLE}:check_before",
        args=("nvlink",),
    ),
    Mutant(
        "the seconds of the warm-up count",
        "test_mfu:figures",
        lambda original: lambda lines, warmup, *rest: original(lines, 1, *rest),
        f"{TABLE}:check_arithmetic",
    ),
    Mutant(
        "utilisation of the node in place of one GPU",
        "test_mfu:figures",
        lambda original: lambda lines, warmup, flops, gpus, *rest: original(lines, warmup, flops, 1, *rest),
        f"{TABLE}:check_arithmetic",
    ),
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
