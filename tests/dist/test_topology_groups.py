"""The process groups of a topology, the mpu face, and the control plane's collectives."""

import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from harness import run_ranks

from mads.topology import AXES

FACTORS = {4: [(4,), (2, 2)], 2: [(2,)], 1: []}
GRIDS = [dict(zip(axes, sizes)) for sizes in FACTORS[4] for axes in itertools.combinations(AXES, len(sizes))]
NAMED = {
    "tp": ["tp"],
    "cp": ["cp"],
    "dp": ["dp"],
    "pp": ["pp"],
    "dp_cp": ["dp", "cp"],
    "model": ["pp", "tp"],
    "replica": ["pp", "cp", "tp"],
    "stage": ["dp", "cp", "tp"],
    "world": AXES,
    "control": AXES,
}


def check_groups(grids):
    """G0 on real groups: what each group holds, and that each carries data among its members alone."""
    from topologies import topology as topology_of

    for sizes in grids:
        check_topology(topology_of(**sizes))


def check_new_topology(sizes):
    """For mutants: a broken topology must not be kept in the worker."""
    from mads.topology import Grid, Topology

    check_topology(Topology(Grid(**sizes)))


def check_topology(topology):
    import torch.distributed as dist

    from mads import collectives

    grid, rank = topology.grid, dist.get_rank()
    place = [grid.coordinates(r) for r in range(grid.world_size)]
    here = place[rank]
    wanted = {
        name: [r for r, at in enumerate(place) if all(at[a] == here[a] for a in AXES if a not in axes)]
        for name, axes in NAMED.items()
    }
    if grid.pp > 1 and here["pp"] in (0, grid.pp - 1):
        wanted["embedding"] = [r for r in wanted["pp"] if place[r]["pp"] in (0, grid.pp - 1)]
    named = [*NAMED, "embedding"]
    held = {name: dist.get_process_group_ranks(topology.group(name)) for name in named if topology.has_group(name)}
    wrong = {name: held.get(name) for name in named if held.get(name) != wanted.get(name)}
    told = collectives.all_gather_json(wrong, dist.group.WORLD)  # so that no rank waits for one that has failed
    assert not any(told), told
    for name, same in wanted.items():
        total = collectives.all_reduce_(torch.tensor([2.0**rank]), topology.group(name))
        assert total.item() == sum(2.0**r for r in same), name
        assert collectives.group_rank(topology.group(name)) == same.index(rank)
    if "embedding" not in wanted:
        with pytest.raises(KeyError):
            topology.group("embedding")
    assert dist.get_backend(topology.group("control")) == "gloo"
    assert [topology.coordinate(a) for a in AXES] == [here[a] for a in AXES]
    assert (topology.is_first_stage, topology.is_last_stage) == (here["pp"] == 0, here["pp"] == grid.pp - 1)
    leaders = [r for r, at in enumerate(place) if at["pp"] == at["cp"] == at["tp"] == 0]
    assert topology.replica_leaders == leaders and topology.is_replica_leader == (rank in leaders)
    _check_texts(topology, wanted)
    _check_what_deepspeed_sees(topology, wanted)


def _check_texts(topology, wanted):
    at = "pp={pp} dp={dp} cp={cp} tp={tp}".format(**topology.coordinates)
    assert str(topology) == f"{topology.grid} rank {topology.rank} ({at})"
    first, *lines = topology.describe().splitlines()
    assert (
        first
        == f"{topology.grid}, {topology.world_size} rank{'s'[: topology.world_size - 1]}; this is rank {topology.rank} ({at})"
    )
    shown = {line.split()[0]: line for line in lines}
    for name, ranks in wanted.items():
        groups = len(topology.grid.groups(*NAMED.get(name, ("pp",))))
        assert f" {groups} x {len(ranks)} " in shown[name] and str(ranks) in shown[name], name
    assert ("not in one" in shown.get("embedding", "")) == ("embedding" in shown and "embedding" not in wanted)


def _check_what_deepspeed_sees(topology, wanted):
    """Through DeepSpeed's own functions: the data side is dp x cp, the model side tp."""
    import torch.distributed as dist
    from deepspeed.utils import bwc
    from deepspeed.utils import groups as deepspeed_groups

    from mads.topology import MPU
    from mads.train.engine import prepare_deepspeed

    prepare_deepspeed()
    mpu, ranks_of = MPU(topology), dist.get_process_group_ranks
    kept, deepspeed_groups.mpu = deepspeed_groups.mpu, mpu
    try:
        assert ranks_of(deepspeed_groups._get_sequence_data_parallel_group()) == wanted["dp_cp"]
        assert deepspeed_groups._get_sequence_data_parallel_world_size() == len(wanted["dp_cp"])
        assert deepspeed_groups._get_sequence_data_parallel_rank() == wanted["dp_cp"].index(topology.rank)
        assert ranks_of(deepspeed_groups._get_data_parallel_group()) == wanted["dp"]
        assert deepspeed_groups._get_data_parallel_group_ranks() == wanted["dp"]
        assert deepspeed_groups._get_data_parallel_world_size() == len(wanted["dp"])
        assert deepspeed_groups._get_data_parallel_rank() == wanted["dp"].index(topology.rank)
        assert ranks_of(deepspeed_groups._get_sequence_parallel_group()) == wanted["cp"]
        assert deepspeed_groups._get_sequence_parallel_rank() == wanted["cp"].index(topology.rank)
        assert deepspeed_groups._get_model_parallel_world_size() == len(wanted["tp"])
        assert deepspeed_groups._get_broadcast_src_rank() == wanted["dp_cp"][0]
    finally:
        deepspeed_groups.mpu = kept
    assert ranks_of(bwc.bwc_tensor_model_parallel_group(mpu)) == ranks_of(mpu.get_model_parallel_group()) == wanted["tp"]
    assert bwc.bwc_tensor_model_parallel_rank(mpu) == mpu.get_model_parallel_rank() == wanted["tp"].index(topology.rank)
    assert bwc.bwc_tensor_model_parallel_world_size(mpu) == mpu.get_model_parallel_world_size() == len(wanted["tp"])
    assert mpu.get_tensor_model_parallel_src_rank() == wanted["tp"][0]
    assert bwc.bwc_pipeline_parallel_world_size(mpu) == 1


def test_g0_named_groups_of_every_grid_on_four_ranks():
    assert len(GRIDS) == 10
    run_ranks(4, check_groups, GRIDS)


@pytest.mark.parametrize("world", [1, 2])
def test_g0_named_groups_of_every_smaller_grid(world):
    run_ranks(world, check_groups, [{axis: world} for axis in AXES])


def check_order():
    """All ranks must create the same groups in the same order: a group is made by all ranks together, also by non-members."""
    import torch.distributed as dist

    from mads import collectives, topology

    made = []
    with mock.patch.object(topology.dist, "new_group", lambda ranks, **rest: made.append(list(ranks)) or tuple(ranks)):
        for sizes in GRIDS:
            topology.Topology(topology.Grid(**sizes))
            made.append(["end of", str(sizes)])
    told = collectives.all_gather_json(made, dist.group.WORLD)
    assert all(order == told[0] for order in told) and len(made) > 40


def test_g0_every_rank_creates_the_groups_in_the_same_order():
    run_ranks(4, check_order)


def check_refusal():
    from mads.topology import Grid, Topology

    with pytest.raises(ValueError, match="PP\\(1\\)-DP\\(3\\).* has 3 ranks, but 4 processes were started"):
        Topology(Grid(dp=3))


def test_a_grid_that_does_not_fill_the_world_is_refused():
    run_ranks(4, check_refusal)


def _piece(rank, dtype, shape):
    """What a rank contributes: none on rank 1, otherwise bit patterns with NaN payloads and infinities among them."""
    count = 0 if rank == 1 else rank + 2
    raw = np.random.default_rng(rank).integers(0, 256, (count, *shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    value = raw.view(dtype)[..., 0]
    if count and np.dtype(dtype).kind == "f":
        value.reshape(-1)[0] = np.nan
        value.view(f"u{np.dtype(dtype).itemsize}").reshape(-1)[0] |= 5  # a payload
    return value


def check_ragged():
    import torch.distributed as dist

    from mads import collectives

    rank, world, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    for dtype, shape in ((np.float64, ()), (np.float32, (3,)), (np.int64, (2, 2)), (np.uint8, ()), (np.uint16, (1,))):
        mine = _piece(rank, dtype, shape)
        kept = mine.copy()
        pieces = collectives.ragged_all_gather(mine, group)
        assert mine.tobytes() == kept.tobytes() and len(pieces) == world
        for source, piece in enumerate(pieces):
            wanted = _piece(source, dtype, shape)
            assert piece.dtype == wanted.dtype and piece.shape == wanted.shape
            assert piece.tobytes() == wanted.tobytes()  # bytes: NaN payloads too
            assert piece.flags.writeable
    pieces = collectives.ragged_all_gather(np.arange(12.0).reshape(6, 2)[::2], group)  # not contiguous
    assert all(np.array_equal(p, [[0, 1], [4, 5], [8, 9]]) for p in pieces)
    nothing = collectives.ragged_all_gather(np.zeros((0, 4), np.float32), group)
    assert [p.shape for p in nothing] == [(0, 4)] * world


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ragged_gather_moves_bytes_unchanged_with_empty_ranks(world):
    run_ranks(world, check_ragged)


def check_broadcasts():
    import torch.distributed as dist

    from mads import collectives

    rank, world, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    for src in range(world):
        value = np.array([2**62 + src, -1, src], dtype=np.int64)
        got = collectives.broadcast_array(value if rank == src else None, group, np.int64, src)
        assert got.dtype == np.int64 and got.tolist() == value.tolist()
        empty = collectives.broadcast_array(np.zeros(0) if rank == src else None, group, np.float64, src)
        assert empty.shape == (0,) and empty.dtype == np.float64
        told = collectives.broadcast_json({"a": [src, None, "ü"]} if rank == src else "ignored", group, src)
        assert told == {"a": [src, None, "ü"]}
    assert collectives.all_gather_json({"rank": rank, "text": "x" * rank}, group) == [
        {"rank": r, "text": "x" * r} for r in range(world)
    ]
    assert collectives.all_gather_flat(torch.full((3,), float(rank)), group).tolist() == [
        float(r) for r in range(world) for _ in "abc"
    ]
    for op, wanted in (("sum", sum(range(world))), ("max", world - 1), ("min", 0)):
        assert collectives.all_reduce_(torch.tensor(rank), group, op).item() == wanted
    assert collectives.group_size(None) == 1 and collectives.group_rank(None) == 0


@pytest.mark.parametrize("world", [1, 2, 4])
def test_broadcasts_and_reductions_from_every_source(world):
    run_ranks(world, check_broadcasts)


def check_disagreement(odd):
    import torch.distributed as dist

    from mads import collectives

    rank, group = dist.get_rank(), dist.group.WORLD
    collectives.assert_equal_on_ranks({"a": [1, 2.5]}, group, "nothing")
    with pytest.raises(collectives.ReplicaMismatchError) as caught:
        collectives.assert_equal_on_ranks("bad" if rank == odd else "good", group, "the thing")
    return str(caught.value)


@pytest.mark.parametrize("odd", [0, 2])
def test_x2_a_value_that_differs_is_named_with_its_ranks_on_every_rank(odd):
    rest = [r for r in range(4) if r != odd]
    for message in run_ranks(4, check_disagreement, odd):
        assert message.startswith("the thing differs between ranks: ")
        assert f'ranks [{odd}]: "bad"' in message and f'ranks {rest}: "good"' in message


def test_digest_separates_its_parts_and_fits_int64():
    from mads.collectives import digest

    parts = [("a", "b"), ("ab",), ("ab", ""), ("", "ab"), (b"a", 1), (np.array([1]),), (np.array([1], np.int32),), (1,)]
    values = [digest(*p) for p in parts]
    assert len(set(values)) == len(parts) and all(0 <= v < 2**63 for v in values)
    assert digest(np.arange(6).reshape(2, 3)[:, ::2]) == digest(np.array([0, 2, 3, 5]))  # as contiguous bytes
