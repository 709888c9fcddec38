"""D1: the ranks of one model replica train on the same tokens, replicas on different ones, and a batch that differs stops the run."""

import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
from harness import run_ranks
from support import make_pool
from topologies import topology as topology_of

from mads.collectives import ReplicaMismatchError, all_gather_json, digest
from mads.data.loader import Loader
from mads.train.invariants import check_replicas


def check_d1_ranks_of_a_replica_see_the_same_tokens(grid):
    topology, steps = topology_of(**grid), 3
    with tempfile.TemporaryDirectory() as folder:
        pool = make_pool(folder)
        with Loader(pool, 32, 4, 1, topology.coordinate("dp"), topology.size("dp"), prefetch=2) as loader:
            loader.begin_round(0, np.random.default_rng(1).permutation(pool.ids))
            batches = [loader.next() for _ in range(steps)]
    mine = [[digest(m.tokens.numpy(), m.labels.numpy(), m.positions.numpy()) for m in b.micro_batches] for b in batches]
    seen = all_gather_json({"tokens": mine, "ids": [b.sample_ids.tolist() for b in batches]}, topology.group("control"))
    by_replica: dict[int, list] = {}
    for rank, told in enumerate(seen):
        by_replica.setdefault(rank // (grid.get("tp", 1)) % grid.get("dp", 1), []).append(told)
    for replica in by_replica.values():
        assert all(told == replica[0] for told in replica)
    for step in range(steps):
        tokens = [replica[0]["tokens"][step] for replica in by_replica.values()]
        assert len({h for own in tokens for h in own}) == sum(map(len, tokens))  # replicas are disjoint
    assert all(told["ids"] == seen[0]["ids"] for told in seen)  # and all know the whole global batch


def check_a_batch_that_differs_is_named():
    topology = topology_of(dp=2)
    model, ids = SimpleNamespace(digest=lambda: 7), np.arange(5)
    check_replicas(3, model, topology, 1, ids, ids)
    other = ids + (topology.rank == 1)
    with pytest.raises(ReplicaMismatchError, match=r"after step 3: the global batch differs .*ranks \[0\].*ranks \[1\]"):
        check_replicas(3, model, topology, 1, other, ids)
    with pytest.raises(ReplicaMismatchError, match="the decision differs"):
        check_replicas(3, model, topology, 1, ids, other)
    with pytest.raises(ReplicaMismatchError, match="the parameters differ"):
        check_replicas(3, SimpleNamespace(digest=lambda: topology.rank), topology, 1, ids, ids)


@pytest.mark.parametrize("grid", [{"dp": 2, "tp": 2}, {"pp": 2, "dp": 2}, {"dp": 4}])
def test_d1_ranks_of_a_replica_see_the_same_tokens(grid):
    run_ranks(4, check_d1_ranks_of_a_replica_see_the_same_tokens, grid)


def test_d1_a_batch_that_differs_is_named():
    run_ranks(2, check_a_batch_that_differs_is_named)
