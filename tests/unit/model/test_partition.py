"""Pipeline stages against every possible cut (P4)."""

import itertools
import random

import pytest

from mads.model.partition import partition


def _all_cuts(count, stages):
    for inner in itertools.combinations(range(1, count), stages - 1):
        yield [0, *inner, count]


def check_partition():
    draw = random.Random(0)
    for _ in range(60):
        count = draw.randint(1, 9)
        stages = draw.randint(1, count)
        costs = [draw.choice([0, 1, 5, 5, 5, 17]) for _ in range(count)]
        borders = partition(costs, stages)
        sums = {tuple(c): [sum(costs[a:b]) for a, b in itertools.pairwise(c)] for c in _all_cuts(count, stages)}
        assert tuple(borders) in sums  # consecutive, complete, no stage empty
        assert max(sums[tuple(borders)]) == min(max(s) for s in sums.values())


def test_p4_uneven_pieces_are_cut_as_evenly_as_any_cut_can():
    check_partition()


def test_p4_more_stages_than_pieces_are_refused():
    with pytest.raises(ValueError, match="3 pieces of the model cannot be cut into 4 pipeline stages; use at most 3"):
        partition([1, 1, 1], 4)
