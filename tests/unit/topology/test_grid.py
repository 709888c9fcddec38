"""G0: groups of ranks against brute force, for every grid of at most eight ranks."""

import itertools

import pytest

from mads.topology import AXES, GROUP_AXES, Grid, named_groups

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


def check_named_groups(sizes):
    """Every name against a definition that shares nothing with GROUP_AXES."""
    grid, places = Grid(**dict(zip(AXES, sizes))), oracle(*sizes)
    same = {  # what the ranks of a group have in common
        "tp": ("pp", "dp", "cp"),
        "cp": ("pp", "dp", "tp"),
        "dp": ("pp", "cp", "tp"),
        "pp": ("dp", "cp", "tp"),
        "dp_cp": ("pp", "tp"),
        "model": ("dp", "cp"),
        "replica": ("dp",),
        "stage": ("pp",),
        "world": (),
    }
    named = named_groups(grid)
    assert set(named) == set(same) | ({"embedding"} if grid.pp > 1 else set()) and set(GROUP_AXES) == set(same)
    for name, axes in same.items():
        groups: dict[tuple, list[int]] = {}
        for rank, place in enumerate(places):
            groups.setdefault(tuple(place[a] for a in axes), []).append(rank)
        assert sorted(named[name]) == sorted(groups.values()), name
    for first, last in named.get("embedding", []):
        assert places[first]["pp"] == 0 and places[last]["pp"] == grid.pp - 1
        assert {a: places[first][a] for a in AXES if a != "pp"} == {a: places[last][a] for a in AXES if a != "pp"}
    ends = sorted(itertools.chain(*named.get("embedding", [])))
    assert ends == [r for r, place in enumerate(places) if grid.pp > 1 and place["pp"] in (0, grid.pp - 1)]


def check_every_grid():
    for sizes in GRIDS:
        check_coordinates_and_groups(sizes)
        check_named_groups(sizes)


@pytest.mark.parametrize("sizes", GRIDS, ids=lambda s: "x".join(map(str, s)))
def test_g0_named_groups_equal_the_oracle(sizes):
    check_named_groups(sizes)


@pytest.mark.parametrize("sizes", GRIDS, ids=lambda s: "x".join(map(str, s)))
def test_g0_coordinates_and_groups_equal_the_oracle(sizes):
    check_coordinates_and_groups(sizes)


def check_coordinates_and_groups(sizes):
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
