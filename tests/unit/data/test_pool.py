import json
import struct

import numpy as np
import pytest
from support import make_pool

from mads.data.pool import Pool
from mads.data.schema import SHARD_SHIFT, DataError


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("pool"), documents=60, shard_tokens=700)


@pytest.fixture(scope="module")
def directory(tmp_path_factory, pool):
    directory = tmp_path_factory.mktemp("again")
    make_pool(directory, documents=60, shard_tokens=700)
    return directory


def tokens_by_struct(directory, shard, row):
    raw = (directory / f"train/shard-{shard:05d}.idx").read_bytes()
    n = struct.unpack_from("<Q", raw, 18)[0]
    length = struct.unpack_from("<i", raw, 34 + 4 * row)[0]
    pointer = struct.unpack_from("<q", raw, 34 + 4 * n + 8 * row)[0]
    return list(struct.unpack_from(f"<{length}H", (directory / f"train/shard-{shard:05d}.bin").read_bytes(), pointer))


def test_ids_lengths_and_tokens_equal_a_parse_of_the_files(pool, directory):
    shards = pool.manifest.parts["train"]["shards"]
    assert len(shards) > 3 and len(pool) == sum(shards)
    expected = [(s << SHARD_SHIFT) + r for s, n in enumerate(shards) for r in range(n)]
    assert np.asarray(pool.ids).tolist() == expected and pool.ids.dtype == np.int64 and pool.lengths.dtype == np.int32
    positions = np.random.default_rng(0).permutation(len(pool))[:50]
    for position, tokens in zip(positions, pool.tokens(positions)):
        shard, row = int(pool.ids[position]) >> SHARD_SHIFT, int(pool.ids[position]) & ((1 << SHARD_SHIFT) - 1)
        assert tokens.tolist() == tokens_by_struct(directory, shard, row)
        assert len(tokens) == pool.lengths[position]


def test_positions_of_is_the_inverse_of_ids_and_refuses_foreign_ids(pool):
    order = np.random.default_rng(1).permutation(len(pool))
    assert np.array_equal(pool.positions_of(pool.ids[order]), order)
    shards = pool.manifest.parts["train"]["shards"]
    for bad in (shards[0], -1, len(shards) << SHARD_SHIFT, (1 << SHARD_SHIFT) + shards[1]):
        with pytest.raises(DataError, match=f"1 of 2 sample ids .* first is {bad}"):
            pool.positions_of(np.array([pool.ids[0], bad]))
    with pytest.raises(DataError, match="positions from"):
        pool.tokens(np.array([len(pool)]))


def test_view_of_slice_and_of_positions_agree(pool):
    start, stop = pool.slice_bounds(1, 3)
    sliced, picked = pool.view(slice(start, stop)), pool.view(np.arange(start, stop))
    for view in (sliced, picked):
        assert np.array_equal(view.ids, pool.ids[start:stop]) and np.array_equal(view.lengths, pool.lengths[start:stop])
        assert np.array_equal(view.codes("topic"), pool.codes("topic")[start:stop])
        assert np.array_equal(view.values("quality"), pool.values("quality")[start:stop])
        assert view.labels("domain") == ("news", "code", "books") and len(view) == stop - start


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_slices_cover_the_pool_once_and_are_near_equal(pool, count):
    bounds = [pool.slice_bounds(r, count) for r in range(count)]
    assert bounds[0][0] == 0 and bounds[-1][1] == len(pool)
    assert all(a[1] == b[0] for a, b in zip(bounds, bounds[1:]))
    sizes = [b - a for a, b in bounds]
    assert max(sizes) - min(sizes) <= 1


def test_unknown_attribute_lists_those_that_exist(pool):
    with pytest.raises(DataError, match=r"no attribute 'mood'.*'domain', 'likeness', 'quality', 'topic'"):
        pool.codes("mood")
    with pytest.raises(DataError, match=r"'topic' has labels only.*\['quality'\]"):
        pool.values("topic")


def test_open_refuses_missing_empty_and_changed_parts(directory, tmp_path):
    with pytest.raises(DataError, match="no part 'test'"):
        Pool.open(directory, "test")
    with pytest.raises(DataError, match="mads prepare"):
        Pool.open(tmp_path / "nothing")
    make_pool(tmp_path / "empty", heldout=0)
    with pytest.raises(DataError, match="holds no sample"):
        Pool.open(tmp_path / "empty", "heldout")
    make_pool(tmp_path / "cut")
    path = tmp_path / "cut/train/shard-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"shard-00000.bin should have"):
        Pool.open(tmp_path / "cut")
    make_pool(tmp_path / "count")
    manifest = json.loads((tmp_path / "count/manifest.json").read_text())
    manifest["parts"]["train"]["shards"][0] += 1
    (tmp_path / "count/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="the manifest says"):
        Pool.open(tmp_path / "count")


def test_fingerprint_follows_content(tmp_path):
    one, same, other = (make_pool(tmp_path / n, seed=s).fingerprint for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert one == same != other


def test_the_first_shards_are_the_pool_as_it_was(tmp_path):
    make_pool(tmp_path, shard_tokens=700)
    whole, first = Pool.open(tmp_path), Pool.open(tmp_path, shards=2)
    n = sum(whole.shards[:2])
    assert 2 < len(whole.shards) and len(first) == n and first.shards == whole.shards[:2]
    assert np.array_equal(np.asarray(first.ids), whole.ids[:n]) and np.array_equal(
        first.codes("topic")[:], whole.codes("topic")[:n]
    )
    assert first.total_tokens == whole.lengths[:n].sum() and whole.total_tokens == np.sum(whole.lengths)
    assert first.fingerprint == whole.manifest.shards_fingerprint("train", 2) != whole.fingerprint
    assert first.attribute_fingerprint("topic") not in (
        whole.attribute_fingerprint("topic"),
        first.attribute_fingerprint("domain"),
    )
    for bad in (0, len(whole.shards) + 1):
        with pytest.raises(DataError, match=f"{bad} were asked for"):
            Pool.open(tmp_path, shards=bad)
