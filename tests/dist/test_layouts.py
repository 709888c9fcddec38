"""Training and rewards at any layout equal one process (G2, T7, P2, Z2, Z4, S2): a subset that holds every pair of settings.
All layouts: tests/full/layout_matrix.py."""

import math

import layout_cases
import layouts
import pytest
from harness import run_ranks

CASES = sorted(layout_cases.pairwise(), key=lambda case: (math.prod(case["grid"]), str(case)))


def _name(case):
    grid = "".join(f"{axis}{size}" for axis, size in zip(layout_cases.AXES, case["grid"]) if size > 1) or "one"
    on = [key for key in ("tied", "sequence_parallel", "dropout", "smoothing", "overlap") if case[key]]
    return "-".join([grid, f"zero{case['zero']}", case["recompute"], *on])


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_g2_p2_z2_three_steps_and_rewards_equal_one_process(case):
    found = run_ranks(math.prod(case["grid"]), layouts.check_layout, *layout_cases.overrides(case), timeout=180)
    assert all(deviation == found[0] for deviation in found)  # every rank saw the same loss, norm and weights


REWARDED = [
    ({"tp": 2}, 3, []),
    ({"pp": 2}, 0, ["model.tie_embeddings=true"]),
    ({"cp": 2}, 1, ["model.hidden_dropout=0.1"]),
    ({"pp": 2, "tp": 2}, 1, ["parallel.sequence_parallel=true"]),
]


@pytest.mark.parametrize("grid, zero, more", REWARDED, ids=str)
def test_x3_a_reward_pass_leaves_no_trace_at_any_layout(grid, zero, more):
    run_ranks(math.prod(grid.values()), layouts.check_rewards, grid, zero, more, timeout=180)
