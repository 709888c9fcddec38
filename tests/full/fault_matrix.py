"""Killed at any place, damaged, out of disk, with other data: every run that goes on equals the undisturbed one, bit for bit.

A chain is a run that is killed several times by SIGKILL and started again, sometimes with its newest checkpoint damaged in
between; then it runs to its end. Where it is killed follows from the chain's seed: rank, place, step and the call inside it, of
any function or of those that reach files. Whatever is found after a kill is compared too: every checkpoint, with that of the
undisturbed run.
"""

from __future__ import annotations

import fault_cases
import fault_support

KILLS = 5
LIMIT_S = 900.0
ROWS = True
# Chains by layout.
CHAINS = {
    "dp2 zero0": 7,
    "dp2 zero1": 9,
    "dp2 zero2": 8,
    "dp2 zero3": 8,
    "tp2 zero1": 4,
    "pp2 zero1": 4,
    "alone zero1": 4,
    "dp2 tp2 zero2": 4,
}


def cases() -> list[dict]:
    faults = [{"fault": name, "world": 2} for name in fault_cases.CASES]
    chains = [
        {"layout": layout, "seed": seed, "kills": KILLS, "world": fault_support.LAYOUTS[layout][0]}
        for layout, count in CHAINS.items()
        for seed in range(count)
    ]
    return faults + chains


def name_of(case: dict) -> str:
    return case.get("fault") or f"{case['layout']}, chain {case['seed']}"


def group_of(case: dict) -> str:
    return "faults" if "fault" in case else case["layout"]


def run_case(case: dict) -> dict:
    """What was printed, or where the kills were.

    Raises:
        AssertionError: with what was done and printed, if anything but the undisturbed run came out.
    """
    if "fault" in case:
        return fault_cases.run_fault(case["fault"])
    chain = fault_support.run_chain(case["seed"], case["layout"], case["kills"])
    places = ", ".join(f"{count} {place}" for place, count in sorted(chain.kills.items()))
    return {"then": f"killed in {places}; {chain.fallbacks} times a damaged checkpoint was passed over; the curve is equal"}
