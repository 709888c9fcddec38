"""G0: groups of ranks against brute force, for every grid of at most eight ranks."""

import itertools

import pytest

from mads.topology import AXES, Grid

GRIDS = [sizes for sizes in itertools.product(range(1, 9), repeat=4) if sizes[0] * sizes[1] * sizes[2] * sizes[3] <= 8]


def oracle(pp, dp, cp, tp):
    """Coordinates of every rank, by counting: tp fastest, pp slowest."""
    return [{"pp": p, "dp": d, "cp": c, "tp": t} for p in range(pp) for d in range(dp) for c in range(cp) for t in range(tp)]


def groups_by_comparison(places, axes):
    """Ranks belong together when they differ on `axes` only."""
    groups = []
    for rank, place in enumerate(places):
        for group in groups:
            if all(places[group[0]][a] == place[a] for a in AXES if a not in axes):
                group.append(rank)
                break
        else:
            groups.append([rank])
    return groups


def test_there_are_grids_of_every_size():
    assert {p * d * c * t for p, d, c, t in GRIDS} == set(range(1, 9)) and len(GRIDS) > 60


@pytest.mark.parametrize("sizes", GRIDS, ids=lambda s: "x".join(map(str, s)))
def test_g0_coordinates_and_groups_equal_the_oracle(sizes):
    grid, places = Grid(**dict(zip(AXES, sizes))), oracle(*sizes)
    assert grid.world_size == len(places)
    for rank, place in enumerate(places):
        assert grid.coordinates(rank) == place and grid.rank(**place) == rank
    for count in range(1, 5):
        for axes in itertools.combinations(AXES, count):
            groups = grid.groups(*axes)
            assert sorted(groups) == sorted(groups_by_comparison(places, axes))
            assert sorted(itertools.chain(*groups)) == list(range(len(places)))  # each rank in exactly one
            assert all(group == sorted(group) for group in groups)
    assert all(group == list(range(group[0], group[0] + sizes[3])) for group in grid.groups("tp"))  # contiguous


def test_ranks_outside_and_sizes_below_one_are_refused():
    grid = Grid(dp=2, tp=2)
    for rank in (-1, 4):
        with pytest.raises(
            ValueError, match=f"rank {rank} is outside of the grid PP\\(1\\)-DP\\(2\\)-CP\\(1\\)-TP\\(2\\) with 4 ranks"
        ):
            grid.coordinates(rank)
    with pytest.raises(ValueError, match="tp=0 must be at least 1"):
        Grid(tp=0)
