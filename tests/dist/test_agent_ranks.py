"""Every agent on 1 and 2 gloo ranks: the same ids, theta, records and states, by either exchange."""

from agent_support import CONFIGS, ROUNDS, rounds
from harness import run_ranks
from topologies import topology as topology_of


def on_ranks(dp):
    return [rounds(topology_of(dp=dp), config) for config in CONFIGS]


def test_one_and_two_ranks_decide_the_same():
    [alone] = run_ranks(1, on_ranks, 1, timeout=120)
    for result in alone:
        assert len({frozenset(ids) for ids, *_ in result}) == ROUNDS
        assert len(set(result[-1][3]["theta"].values())) > 2  # the agents were judged, and not alike
    assert [ids for ids, *_ in alone[1]] == [ids for ids, *_ in alone[2]]  # gather and threshold agree
    for rank, both in enumerate(run_ranks(2, on_ranks, 2, timeout=120)):
        for ours, theirs in zip(both, alone):
            assert [r[:3] for r in ours] == [r[:3] for r in theirs]
            assert rank > 0 or [r[3] for r in ours] == [r[3] for r in theirs]
