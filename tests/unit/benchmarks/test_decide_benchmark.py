"""The benchmark of large decisions: what it measures is the decision of the full sort, and it leaves no file."""

import numpy as np

from benchmarks.decide import DTYPES, KINDS, measure, read_slice, write_pool


def test_both_ranks_decide_as_the_full_sort_and_the_files_are_gone(tmp_path):
    result = measure(30_001, 2, tmp_path, compare=True)
    assert all(result[kind]["equal"] for kind in KINDS) and len({result[kind]["ids"] for kind in KINDS}) == 4
    assert 0 <= result["top_k"]["tokens"] - result["top_k"]["budget"] < 2049
    assert 0 < result["top_k"]["chosen"] < 1000 and max(result["peak_gib_of_each_rank"]) > 0
    assert list(tmp_path.iterdir()) == []


def test_the_pool_on_disk_is_what_is_said(tmp_path):
    tokens = write_pool(tmp_path / "3", 1000, seed=3, piece=300)
    assert sum(path.stat().st_size for path in (tmp_path / "3").iterdir()) == 1000 * 21
    pool, _, scores = read_slice(tmp_path / "3")
    assert pool.lengths[:].sum() == tokens and set(DTYPES) == {path.name for path in (tmp_path / "3").iterdir()}
    np.testing.assert_array_equal(pool.ids[:], np.arange(1000) + (3 << 40))
    total, wrong = scores.checked_total(slice(0, 1000))
    assert wrong == [0, 0, 0, 0] and len(np.unique(total)) > 990
