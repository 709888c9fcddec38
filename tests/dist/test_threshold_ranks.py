"""The threshold search over ranks with uneven slices: the same decision as the full sort, on every rank."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from harness import run_ranks

from mads.topology import Grid, Topology

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit" / "console"))
from test_threshold import SELECTORS, assert_same, full_sort, make_case, searched  # noqa: E402

CUTS = {1: [0, 1501], 2: [0, 1013, 1501], 4: [0, 0, 700, 701, 1501]}  # the first of four has no sample, the third one


def check_the_same_decision(selector, ties, gather_limit):
    """On every rank: the decision from its slice is the full sort of the whole pool."""
    topology = Topology(Grid(dp=dist.get_world_size()))
    case = make_case(7, 1501, ties)
    everything = int(case[1].sum())
    cut = slice(*CUTS[dist.get_world_size()][topology.rank : topology.rank + 2])
    sizes = {"piece": 211, "gather_limit": gather_limit}
    for budget in (1, everything // 9, everything // 2, everything + 1):
        found = searched(selector, case, 3, 4, budget, cut, topology.group("control"), **sizes)
        assert_same(found, full_sort(selector, case, 3, 4, budget))
    return len(found.ids)


@pytest.mark.parametrize("ties, gather_limit", [("some", 10), ("none", 1), ("all", 1 << 20)])
@pytest.mark.parametrize("selector", SELECTORS)
def test_x1_the_same_decision_on_1_2_and_4_ranks(selector, ties, gather_limit):
    for world in CUTS:
        assert run_ranks(world, check_the_same_decision, selector, ties, gather_limit) == [1501] * world


def _a_bad_score_on_the_last_rank():
    topology = Topology(Grid(dp=2))
    case = make_case(8, 1501, "none")
    case[3][2].values[1500] = np.nan
    start, stop = CUTS[2][topology.rank : topology.rank + 2]
    try:
        searched("gumbel", case, 0, 0, 500, slice(start, stop), topology.group("control"))
    except ValueError as error:
        return str(error)
    return None


def test_a_bad_score_on_one_rank_is_raised_on_all():
    for message in run_ranks(2, _a_bad_score_on_the_last_rank):
        assert "agent 'length' cannot score 1 of 1501" in message


def _slices_in_the_wrong_order():
    topology = Topology(Grid(dp=2))
    start, stop = [CUTS[2][1:], CUTS[2][:2]][topology.rank]
    try:
        searched("random", make_case(8, 1501), 0, 0, 500, slice(start, stop), topology.group("control"))
    except ValueError as error:
        return str(error)
    return None


def test_slices_that_do_not_follow_in_rank_order_are_refused():
    for message in run_ranks(2, _slices_in_the_wrong_order):
        assert "strictly ascending over all ranks; 1 of 1501" in message
