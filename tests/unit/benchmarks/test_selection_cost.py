"""The arithmetic of what a selection costs, and a small pool decided by both exchanges as the benchmark does it."""

import numpy as np
import pytest

from benchmarks.selection_cost import (
    KINDS,
    PAPER,
    SyntheticPool,
    h100_seconds,
    paper_rewards,
    per_sample,
    pool_cell,
    shares,
    tables,
)


def test_rewards_at_the_papers_setting_are_those_of_the_page():
    tokens = paper_rewards({})
    assert tokens["finite_difference"] == pytest.approx(20.7e6, rel=0.005)  # benchmarks/selection.md
    assert tokens["ghost"] == pytest.approx(30.9e6, rel=0.005)
    assert tokens["group"] == pytest.approx(0.70e6, rel=0.05)
    assert paper_rewards({"group": 1.5})["group"] == pytest.approx(1.5 * tokens["group"])
    assert tokens["finite_difference"] / PAPER.tokens == pytest.approx(0.0033, rel=0.02)


def test_shares_of_a_round():
    unit = {"probes": 32e-9, "decision": 64e-9, "chosen": 1e-6}
    found = shares(1e9, unit, PAPER.tokens / 50, 100.0)
    assert list(found.values()) == pytest.approx([0.02, 0.01, 0.02, 0.085])
    assert h100_seconds() == pytest.approx(6 * 1.345e9 * 6.29e9 / (32 * 0.4 * 989e12), rel=0.001)


def test_units_are_per_sample_of_a_slice():
    cells = {size: {"way": {"all": [0.5 + 1e-7 * size / 2, 9.0]}} for size in (1000, 100_000, 10_000_000)}
    assert per_sample(cells, "way", "all") == pytest.approx((0.5, 1e-7, 0), abs=1e-6)


def test_the_pool_is_one_of_mads():
    pool = SyntheticPool(1000)
    assert len(pool) == 1000 and pool.total_tokens == pool.lengths[:].sum()
    positions = np.array([999, 0, 250])
    assert pool.positions_of(pool.ids[positions]).tolist() == positions.tolist()
    assert pool.codes("topic")[:].max() < len(pool.labels("topic")) == 13


@pytest.mark.full
def test_a_small_pool_is_decided_alike_by_both_exchanges():
    cells = {f"pool/{size}": pool_cell(size, 60, gather_up_to=1e4) for size in (3000, 6000)}
    for cell in cells.values():
        assert set(cell) == {f"{kind}, {exchange}" for kind in KINDS for exchange in ("gather", "threshold")}
        for way in cell.values():
            assert way["chosen"] > 30 and all(way[part][0] > 0 for part in ("bind", "probes", "all"))
    assert tables(cells).count("\n| mads + curve") == 5
