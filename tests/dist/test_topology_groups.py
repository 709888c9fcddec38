"""The process groups of a topology, the mpu face, and the control plane's collectives."""

import numpy as np
import pytest
import torch
from harness import run_ranks

from mads.topology import AXES


def check_groups(sizes):
    """G0 on real groups: what each group holds, and that each carries data among its members alone."""
    import torch.distributed as dist

    from mads import collectives
    from mads.topology import MPU, Grid, Topology

    topology = Topology(Grid(**sizes))
    grid, rank = topology.grid, dist.get_rank()
    here = grid.coordinates(rank)
    named = {"tp": ["tp"], "cp": ["cp"], "dp": ["dp"], "pp": ["pp"], "dp_cp": ["dp", "cp"], "world": AXES, "control": AXES}
    for name, axes in named.items():
        same = [r for r in range(grid.world_size) if all(grid.coordinates(r)[a] == here[a] for a in AXES if a not in axes)]
        assert dist.get_process_group_ranks(topology.group(name)) == same, name
        total = collectives.all_reduce_(torch.tensor([2.0**rank]), topology.group(name))
        assert total.item() == sum(2.0**r for r in same), name
        assert collectives.group_rank(topology.group(name)) == same.index(rank)
    assert dist.get_backend(topology.group("control")) == "gloo"
    assert [topology.coordinate(a) for a in AXES] == [here[a] for a in AXES]
    leaders = [r for r in range(grid.world_size) if all(grid.coordinates(r)[a] == 0 for a in ("pp", "cp", "tp"))]
    assert topology.replica_leaders == leaders and topology.is_replica_leader == (rank in leaders)
    assert str(topology).startswith(f"{grid} rank {rank} (pp={here['pp']}")
    mpu = MPU(topology)
    for side, axis in (("model", "tp"), ("tensor_model", "tp"), ("data", "dp")):
        assert getattr(mpu, f"get_{side}_parallel_rank")() == here[axis]
        assert getattr(mpu, f"get_{side}_parallel_world_size")() == sizes.get(axis, 1)
        assert getattr(mpu, f"get_{side}_parallel_group")() is topology.group(axis)
    with pytest.raises(ValueError, match="PP\\(1\\)-DP\\(3\\).* has 3 ranks, but 4 processes were started"):
        Topology(Grid(dp=3))


@pytest.mark.parametrize("sizes", [{"dp": 4}, {"pp": 2, "tp": 2}, {"dp": 2, "tp": 2}, {"dp": 2, "cp": 2}])
def test_g0_topology_groups_on_four_ranks(sizes):
    run_ranks(4, check_groups, sizes)


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
