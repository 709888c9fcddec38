"""The threshold search over ranks with uneven slices: the decision of the full sort, on rank 0."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from harness import run_ranks
from topologies import topology as topology_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit" / "console"))
from test_threshold import KINDS, assert_same, full_sort, make_case, make_plan, searched  # noqa: E402

CUTS = {1: [0, 1501], 2: [0, 1013, 1501], 4: [0, 0, 700, 701, 1501]}  # the first of four has no sample, the third one


def check_the_same_decision(kind, ties, gather_limit):
    """The decision from all ranks' slices is the full sort of the whole pool."""
    topology = topology_of(dp=dist.get_world_size())
    case = make_case(7, 1501, ties)
    everything = int(case["lengths"].sum())
    cut = slice(*CUTS[dist.get_world_size()][topology.rank : topology.rank + 2])
    sizes = {"piece": 211, "gather_limit": gather_limit}
    for budget in (1, everything // 9, everything // 2, everything + 1):
        plan, attributes = make_plan(kind, 3, 4, budget)
        found = searched(plan, attributes, case, cut, topology.group("control"), **sizes)
        assert (found is None) == (topology.rank > 0)
        if found is not None:
            assert_same(found, full_sort(plan, attributes, case))


@pytest.mark.parametrize("ties, gather_limit", [("some", 10), ("none", 1), ("all", 1 << 20)])
@pytest.mark.parametrize("world", CUTS)
def test_x1_the_same_decision_on_1_2_and_4_ranks(world, ties, gather_limit):
    run_ranks(world, check_all_kinds, ties, gather_limit, timeout=240)


def check_all_kinds(ties, gather_limit):
    for kind in KINDS:
        check_the_same_decision(kind, ties, gather_limit)


def _error_on(rank, spoil, world=2):
    topology = topology_of(dp=world)
    case = make_case(8, 1501, "none")
    cut = slice(*CUTS[world][topology.rank : topology.rank + 2])
    if spoil == "order":
        cut = slice(*[CUTS[2][1:], CUTS[2][:2]][topology.rank])
    elif topology.rank == rank:
        case["values"] = {"nan": np.where(np.arange(1501) == 1500, np.nan, 0), "type": np.zeros(1501, np.float32)}[spoil]
    try:
        searched(*make_plan("gumbel", 0, 0, 500), case, cut, topology.group("control"))
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def test_x5_a_bad_score_on_one_rank_is_raised_on_all():
    for kind, message in run_ranks(2, _error_on, 1, "nan"):
        assert kind == "ValueError" and "agent 'length' gave 1 of 1501" in message


def test_x5_a_rank_that_cannot_read_its_slice_takes_all_with_it():
    zero, one = run_ranks(2, _error_on, 1, "type")
    assert one[0] == "ValueError" and "gave float32" in one[1]
    assert zero[0] == "RankFailedError"
    assert "survey failed on ranks [1]: rank 1: ValueError: agent 'length' gave float32" in zero[1]


def test_slices_that_do_not_follow_in_rank_order_are_refused():
    for kind, message in run_ranks(2, _error_on, None, "order"):
        assert kind == "ValueError" and "strictly ascending over all ranks; 1 of 1501" in message
