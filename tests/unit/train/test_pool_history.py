import json

import pytest
from support import make_pool

from mads.data.pool import Pool
from mads.data.schema import AttributeSchema, DataError, Manifest
from mads.train.growth import PoolEntry, PoolHistory, open_longer


def entry(round_, shards):
    return PoolEntry(round_, shards, 10 * shards, 100 * shards, f"f{shards}", 2)


def check_rounds_get_the_pool_of_their_time_again(tmp_path):
    make_pool(tmp_path / "data", shard_tokens=500)
    pool, held = Pool.open(tmp_path / "data", shards=1), len(Pool.open(tmp_path / "data").shards)
    history = PoolHistory.read(tmp_path)
    assert history.entries == [] and held > 2
    for e in (entry(0, 2), entry(3, 5), entry(7, 6)):
        history.append(e)
    again = PoolHistory.read(tmp_path)
    assert again.entries == [entry(0, 2), entry(3, 5), entry(7, 6)]
    for follow in (False, True):  # a round that was decided before takes nothing up that it did not take up then
        assert [again.shards_for(r, pool, tmp_path / "data", follow) for r in range(8)] == [2, 2, 2, 5, 5, 5, 5, 6]
    assert again.shards_for(8, pool, tmp_path / "data", False) == 1
    assert again.shards_for(8, pool, tmp_path / "data", True) == held


def test_rounds_get_the_pool_of_their_time_again(tmp_path):
    check_rounds_get_the_pool_of_their_time_again(tmp_path)


def test_a_line_cut_off_by_a_kill_counts_for_nothing_and_others_do(tmp_path):
    path = tmp_path / "pool.jsonl"
    PoolHistory.read(tmp_path).append(entry(0, 2))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:30])
    assert PoolHistory.read(tmp_path).entries == [entry(0, 2)]
    path.write_bytes(whole[:30] + b"\n" + whole)
    with pytest.raises(DataError, match="pool.jsonl:1 is no line"):
        PoolHistory.read(tmp_path)
    path.write_bytes(whole + json.dumps({**json.loads(whole), "round": 4, "shards": 1}).encode() + b"\n")
    with pytest.raises(DataError, match=r"shards \[2, 1\] do not ascend"):
        PoolHistory.read(tmp_path)


def test_an_entry_says_what_the_pool_is(tmp_path):
    make_pool(tmp_path, shard_tokens=700)
    pool = Pool.open(tmp_path, shards=2)
    assert PoolEntry.of(4, pool, 1) == PoolEntry(4, 2, len(pool), int(sum(pool.lengths)), pool.fingerprint, 1)


def test_a_longer_pool_begins_with_the_one_before(tmp_path):
    make_pool(tmp_path / "a", shard_tokens=500)
    make_pool(tmp_path / "b", shard_tokens=500, seed=1)
    pool = Pool.open(tmp_path / "a", shards=2)
    assert open_longer(tmp_path / "a", pool, 3).shards[:2] == pool.shards
    with pytest.raises(DataError, match="the first 2 of .* are not those that this run trains on"):
        open_longer(tmp_path / "b", pool, 3)
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    manifest["files"]["train/attributes/topic/shard-00001.arrow"]["sha256"] = "0" * 64
    del manifest["fingerprint"]
    changed = Manifest(**(manifest | {"attributes": [AttributeSchema(**x) for x in manifest["attributes"]]}))
    changed.write(tmp_path / "a")
    with pytest.raises(DataError, match=r"attributes \['topic'\] of .* were removed or labelled anew"):
        open_longer(tmp_path / "a", pool, 3)
