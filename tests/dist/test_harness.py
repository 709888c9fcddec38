"""The harness itself: results in rank order, failures named, hanging ranks ended, pools reused."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from harness import RankFailure, pool_pids, run_ranks


def rank_and_sum(offset, tensor):
    total = tensor + dist.get_rank()
    dist.all_reduce(total)
    return dist.get_rank() + offset, total


def environment():
    return {k: os.environ[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}, torch.get_num_threads(), torch.rand(3)


def raise_on(rank):
    if dist.get_rank() == rank:
        raise ValueError(f"broken on purpose on {rank}")
    dist.barrier()  # the other ranks hang here, as they would in a real failure


def hang_on(rank):
    if dist.get_rank() == rank:
        time.sleep(1000)


def die_on(rank):
    if dist.get_rank() == rank:
        os._exit(7)
    dist.barrier()


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_results_come_in_rank_order_from_one_reused_pool():
    results = run_ranks(4, rank_and_sum, 10, torch.ones(2, dtype=torch.float64))
    assert [r for r, _ in results] == [10, 11, 12, 13]
    assert all(torch.equal(t, torch.full((2,), 10.0, dtype=torch.float64)) for _, t in results)
    pids = pool_pids(4)
    run_ranks(4, rank_and_sum, 0, torch.zeros(1))
    assert pool_pids(4) == pids and len(set(pids)) == 4


def test_a_worker_knows_its_place_and_starts_every_call_from_one_seed():
    first, second = run_ranks(2, environment), run_ranks(2, environment)
    for rank in range(2):
        assert first[rank][0] == {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} and first[rank][1] == 1
        assert torch.equal(first[rank][2], second[rank][2])


@pytest.mark.parametrize("fn, words", [(raise_on, "ValueError: broken on purpose on 1"), (die_on, "exit code 7")])
def test_a_failing_rank_is_named_and_the_pool_rebuilt(fn, words):
    run_ranks(2, environment)
    before = pool_pids(2)
    with pytest.raises(RankFailure, match=words) as failure:
        run_ranks(2, fn, 1)
    assert failure.value.rank == 1 and "rank 1 of 2" in str(failure.value)
    assert pool_pids(2) == [] and all(gone(pid) for pid in before)
    assert [r for r, _ in run_ranks(2, rank_and_sum, 0, torch.zeros(1))] == [0, 1]


def test_a_hanging_rank_is_ended_after_the_time_limit_and_its_stack_shown():
    run_ranks(2, environment)
    before = pool_pids(2)
    with pytest.raises(RankFailure, match=r"ranks \[0\] of 2 did not finish hang_on within 1 s") as failure:
        run_ranks(2, hang_on, 0, timeout=1)
    assert "in hang_on" in str(failure.value) and failure.value.rank == 0 and failure.value.answers == {1: None}
    assert all(gone(pid) for pid in before)
