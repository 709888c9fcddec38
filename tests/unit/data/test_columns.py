import numpy as np
import pytest

from mads.data.columns import IdColumn, ShardedColumn

SIZES = ([7], [3, 0, 5, 1, 0, 0, 9], [0, 4], [0])


def whole_and_column(sizes, seed=0):
    rng = np.random.default_rng(seed)
    pieces = [rng.integers(0, 1 << 16, n).astype(np.uint16) for n in sizes]
    return np.concatenate(pieces), ShardedColumn(pieces, np.uint16)


@pytest.mark.parametrize("sizes", SIZES)
def test_slices_and_gathers_equal_those_of_the_joined_array(sizes):
    whole, column = whole_and_column(sizes)
    assert len(column) == len(whole) and column.dtype == np.uint16
    assert np.array_equal(np.asarray(column), whole)
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 2):
            assert np.array_equal(column[start:stop], whole[start:stop]) and column[start:stop].dtype == np.uint16
    if len(whole):
        at = np.random.default_rng(1).integers(0, len(whole), 50)
        assert np.array_equal(column[at], whole[at]) and column[at].dtype == np.uint16
        assert [int(v) for v in column] == whole.tolist() and column[len(whole) - 1] == whole[-1]
    assert len(column[np.zeros(0, np.int64)]) == 0
    for size in (1, 2, 100):
        chunks = list(column.chunks(size))
        assert np.array_equal(np.concatenate([whole[:0], *(values for _, values in chunks)]), whole)
        assert all(np.array_equal(values, whole[where]) for where, values in chunks)


@pytest.mark.parametrize("sizes", SIZES)
def test_ids_are_shard_and_row(sizes):
    expected = np.array([(shard << 40) | row for shard, n in enumerate(sizes) for row in range(n)], dtype=np.int64)
    ids = IdColumn(sizes)
    assert np.array_equal(np.asarray(ids), expected) and ids.dtype == np.int64
    for start in range(len(expected)):
        assert np.array_equal(ids[start : start + 3], expected[start : start + 3])
    at = np.random.default_rng(2).permutation(len(expected))
    assert np.array_equal(ids[at], expected[at])


def test_a_slice_inside_a_shard_copies_nothing():
    piece = np.arange(10, dtype=np.uint16)
    assert np.shares_memory(ShardedColumn([piece[:0], piece], np.uint16)[2:6], piece)


@pytest.mark.parametrize("bad", [np.array([-1]), np.array([19]), np.array([True] * 18), np.array([0.0]), slice(0, 4, 2), 18])
def test_what_an_array_would_misread_is_an_error(bad):
    with pytest.raises(IndexError):
        whole_and_column([3, 0, 5, 1, 0, 0, 9])[1][bad]


def test_a_column_is_never_compared_as_a_whole_by_mistake():
    with pytest.raises(TypeError, match="np.asarray"):
        whole_and_column([3])[1] == 4  # noqa: B015
    with pytest.raises(ValueError, match="uint16 cannot hold pieces of int64"):
        ShardedColumn([np.zeros(2, np.int64)], np.uint16)
