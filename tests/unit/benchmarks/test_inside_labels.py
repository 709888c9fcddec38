"""benchmarks.inside_labels: what is left of rewards beside a column, and the table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks.inside_labels import BINS, beside, table  # noqa: E402
from benchmarks.kept import opened  # noqa: E402


def test_beside_leaves_nothing_of_the_column_and_all_of_what_is_independent_of_it():
    rng = np.random.default_rng(3)
    column, own = rng.normal(size=4000), rng.normal(size=4000)
    left = beside(column + own, column)
    assert np.corrcoef(column + own, column)[0, 1] > 0.6
    assert abs(np.corrcoef(left, column)[0, 1]) < 0.05
    assert np.corrcoef(left, own)[0, 1] > 0.95


def test_beside_takes_each_quantile_s_mean_and_fewer_samples_than_bins():
    column, values = np.arange(3.0 * BINS), np.random.default_rng(0).normal(size=3 * BINS)
    expected = values.reshape(BINS, 3) - values.reshape(BINS, 3).mean(1, keepdims=True)
    np.testing.assert_allclose(beside(values, column), expected.ravel())
    np.testing.assert_allclose(beside(values, -column), expected.ravel())
    np.testing.assert_array_equal(beside(values[:5], column[:5]), np.zeros(5))


def test_the_table_counts_pairs_and_gives_the_error_over_seeds():
    losses = {"0/a": (4.0, 4.010), "1/a": (4.0, 4.030), "0/b": (4.0, 3.990), "1/b": (4.0, 4.050)}
    record = {"halves": {f"one step/{k}": [{"audit": x} for x in v] for k, v in losses.items()}}
    header, _, row = table(record, ["one step"]).strip().splitlines()
    assert header == "| ranked by | seeds | won | better half ahead | a | b |"
    # Seed 0: (10 - 10) / 2 = 0, seed 1: (30 + 50) / 2 = 40: mean 20, standard error 20.
    assert row == "| one step | 2 | +20 ± 20 | 3 of 4 | +20 | +20 |"


def test_the_page_s_table_is_that_of_the_committed_record():
    record = json.loads((ROOT / "benchmarks/inside_labels/step_196.json").read_text())
    rows = table(record, ["one step", "likeness", "one step beside likeness"]).strip().splitlines()[2:]
    page = (ROOT / "benchmarks/reward_truth.md").read_text().splitlines()
    assert len(rows) == 3 and set(rows) <= set(page)


def test_a_record_of_other_arguments_is_refused_and_a_missing_one_begins_empty(tmp_path):
    out = tmp_path / "record.json"
    new = opened(out, {"step": 98}, {"halves": {}}, pytest.fail)
    assert new == {"arguments": {"step": 98}, "halves": {}}
    out.write_text(json.dumps({"arguments": {"step": 98}, "halves": {"a": 1}}))
    assert opened(out, {"step": 98}, {"halves": {}}, pytest.fail)["halves"] == {"a": 1}
    with pytest.raises(pytest.fail.Exception, match="was made with .*98.* choose another --out"):
        opened(out, {"step": 196}, {"halves": {}}, pytest.fail)
