"""D1: the ranks of a model replica train on the same tokens, replicas on different ones. test_replica_guard.py: a batch that
differs stops the run."""

import tempfile

import numpy as np
import pytest
from harness import run_ranks
from support import make_pool
from topologies import topology as topology_of

from mads.collectives import all_gather_json, digest
from mads.data.loader import Loader


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


@pytest.mark.parametrize("grid", [{"dp": 2, "tp": 2}, {"pp": 2, "dp": 2}, {"dp": 4}])
def test_d1_ranks_of_a_replica_see_the_same_tokens(grid):
    run_ranks(4, check_d1_ranks_of_a_replica_see_the_same_tokens, grid)
