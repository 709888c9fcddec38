"""Threshold search chooses the ids of the full sort, on many random pools.

100 pools for each kind of decision, kind of ties and limit of the gather; the tests take 3.
"""

from __future__ import annotations

from test_threshold import KINDS, check_equal_to_the_full_sort

POOLS = 100


def cases() -> list[dict]:
    return [
        {"kind": kind, "ties": ties, "gather_limit": limit, "world": 1}
        for kind in KINDS
        for ties in ("all", "some", "none")
        for limit in (1, 1 << 20)
    ]


def run_case(case: dict) -> dict:
    check_equal_to_the_full_sort(case["kind"], case["ties"], case["gather_limit"], seeds=POOLS)
    return {"pools": POOLS}
