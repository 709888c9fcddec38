"""Mutants of mads explain; tests/mutants/mutants.py has the fields."""

import inspect

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import outcome

from mads.data.pool import Pool
from mads.explain.standing import _plain

EXPLAIN = "unit/explain/test_explain.py"
ORDERS, LEFT, GROWN = (f"{EXPLAIN}:check_{name}" for name in ("every_order", "leftovers_go_back", "grown_pool"))
REFUSED = ("AssertionError", "Failed", "DataError")  # a wrong replay is found out by the command itself


def _all_shards(original):
    def open_pool(run, directory, round_):
        return Pool.open(directory), original(run, directory, round_)[1]

    return open_pool


def _everything_consumed(original):
    def packed(*arguments):
        positions, lengths, packer = original(*arguments)
        packer.take = lambda count: packer.take_all()
        return positions, lengths, packer

    return packed


MUTANTS = [
    Mutant("use counts are left out", "mads.explain.replay:_uses", lambda original: _no_uses, ORDERS, red=REFUSED),
    Mutant(
        "leftovers count as used",
        "mads.explain.replay:packed",
        _everything_consumed,
        LEFT,
        red=("AssertionError", "Failed", "DataError", "RecursionError"),
    ),
    Mutant("the pool is opened as it is today", "mads.explain.replay:_open_pool", _all_shards, GROWN, red=REFUSED),
    Mutant("agents are as at the start", "mads.agents.agent:AgentBase.load_state", lambda o: _stays, ORDERS, red=REFUSED),
    Mutant("equal keys count as not after", "mads.explain.standing:_not_after", lambda o: _by_word_alone, ORDERS, red=REFUSED),
    Mutant("a sample is due without its start", "mads.explain.standing:dues", lambda o: _due_at_once, ORDERS, red=REFUSED),
    Mutant(
        "bounds are judged as if there were none", "mads.explain.standing:_within_bounds", lambda o: _plain, ORDERS, red=REFUSED
    ),
]


def _no_uses(run, config, pool, records, round_):
    return np.zeros(len(pool), np.uint16)


def _stays(self, state):
    pass


def _by_word_alone(own, rows, last):
    return bool(own.words[0] <= rows.words[last])


def _due_at_once(plan, shares, cells, weights, before):
    return before / shares[cells]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_explain_mutant_is_caught(mutant):
    red = outcome(mutant)
    assert red is not None, f"{mutant.check} stayed green although {mutant.name}"
    assert any(kind in red.split(":")[0].split() for kind in mutant.red), red


@pytest.mark.parametrize("check", sorted({m.check for m in MUTANTS}))
def test_the_check_is_green_without_any(check):
    function = next(m for m in MUTANTS if m.check == check).check_function()
    assert not inspect.signature(function).parameters and function() is None
