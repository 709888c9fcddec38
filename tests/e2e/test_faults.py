"""A sample of tests/full/fault_matrix.py: runs that are killed at random places equal the undisturbed one, bit for bit."""

import random

import fault_cases
import pytest
from fault_support import run_chain


@pytest.mark.parametrize("kills", [3])
def test_k5_k6_a_run_killed_at_random_places_equals_the_undisturbed_one(kills):
    seed = random.SystemRandom().randrange(10**9)
    print(f"run_chain({seed}, {fault_cases.LAYOUT!r}, {kills})")  # shown if it fails
    chain = run_chain(seed, fault_cases.LAYOUT, kills)
    assert sum(chain.kills.values()) == kills


@pytest.mark.parametrize("fault", ["disk full at a save"])
def test_a_fault_is_told_and_the_run_goes_on_as_if_nothing_had_been(fault):
    [row] = fault_cases.run_fault(fault)["rows"]
    assert row["printed"] and row["then"]


@pytest.mark.full
@pytest.mark.parametrize("broken, place, kills", [("miscount", "reward", 3), ("publish_slowly", "write", 8)])
def test_chains_see_a_resume_that_is_not_exact_and_a_checkpoint_that_is_not_whole(broken, place, kills):
    with pytest.raises(AssertionError, match=r"kill rank \d in"):
        run_chain(3, fault_cases.LAYOUT, kills, {place: 1}, ({"kind": broken, "rank": "all"},))
