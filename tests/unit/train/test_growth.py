import json

import pytest
from support import make_pool

from mads.data.pool import Pool
from mads.data.schema import DataError
from mads.train.growth import PoolEntry, PoolHistory


def entry(round_, shards):
    return PoolEntry(round_, shards, 10 * shards, 100 * shards, f"f{shards}")


def test_rounds_are_decided_on_the_pool_of_their_time(tmp_path):
    history = PoolHistory(tmp_path)
    assert history.at(0) is None and not history.is_replay(0)
    for e in (entry(0, 2), entry(3, 5), entry(7, 6)):
        history.append(e)
    again = PoolHistory(tmp_path)
    assert again.entries == [entry(0, 2), entry(3, 5), entry(7, 6)]
    assert [again.at(r).shards for r in range(9)] == [2, 2, 2, 5, 5, 5, 5, 6, 6]
    assert [again.is_replay(r) for r in (0, 2, 3, 6, 7, 8)] == [True] * 5 + [False]


def test_a_line_cut_off_by_a_kill_counts_for_nothing_and_others_do(tmp_path):
    path = tmp_path / "pool.jsonl"
    PoolHistory(tmp_path).append(entry(0, 2))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    assert PoolHistory(tmp_path).entries == [entry(0, 2)]
    path.write_bytes(whole[:30] + b"\n" + whole)
    with pytest.raises(DataError, match="pool.jsonl:1 is no line"):
        PoolHistory(tmp_path)
    path.write_bytes(whole + json.dumps({**json.loads(whole), "round": 4, "shards": 1}).encode() + b"\n")
    with pytest.raises(DataError, match=r"shards \[2, 1\] do not ascend"):
        PoolHistory(tmp_path)


def test_an_entry_says_what_the_pool_is(tmp_path):
    make_pool(tmp_path, shard_tokens=700)
    pool = Pool.open(tmp_path, shards=2)
    assert PoolEntry.of(4, pool) == PoolEntry(4, 2, len(pool), int(sum(pool.lengths)), pool.fingerprint)
