"""Selections by a column and by a mix on 2 gloo ranks: the ids of one rank, by either exchange."""

import pytest
from harness import run_ranks
from static_support import CONFIGS, naive_rounds, static_rounds
from topologies import topology as topology_of

NAMES = ["top_k", "proportional", "band", "bounds and band", "mix"]


def on_ranks(dp, exchange):
    return {name: static_rounds(topology_of(dp=dp), name, exchange, rounds=3) for name in NAMES}


def check_two_ranks(name, exchange):
    """The loop over single samples, from the slices of two ranks."""
    topology = topology_of(dp=2)
    found = static_rounds(topology, name, exchange, rounds=2)
    assert [set(ids) for ids, _ in found] == naive_rounds(name, rounds=2)


@pytest.mark.parametrize("exchange", ["gather", "threshold"])
def test_two_ranks_decide_as_one_and_both_exchanges_the_same(exchange):
    assert set(NAMES) <= set(CONFIGS)
    [alone] = run_ranks(1, on_ranks, 1, "gather", timeout=240)
    for rank, both in enumerate(run_ranks(2, on_ranks, 2, exchange, timeout=240)):
        for name in NAMES:
            assert [ids for ids, _ in both[name]] == [ids for ids, _ in alone[name]], name
            assert rank > 0 or both[name] == alone[name]
