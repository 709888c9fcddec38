"""Which layouts are tested: all of them in the full matrix, a subset that holds every pair of settings in the suite."""

from __future__ import annotations

import itertools
import math
from typing import Any

AXES = ("pp", "dp", "cp", "tp")
FACTORS: dict[str, tuple] = {
    "grid": (),  # filled in below
    "zero": (0, 1, 2, 3),
    "tied": (False, True),
    "sequence_parallel": (False, True),
    "recompute": ("none", "selective", "full"),
    "dropout": (False, True),
    "smoothing": (False, True),
    "overlap": (False, True),
}


def grids(*worlds: int) -> list[tuple[int, ...]]:
    """(pp, dp, cp, tp) of every layout of so many ranks."""
    sizes = itertools.product(*(range(1, max(worlds) + 1) for _ in AXES))
    return sorted((g for g in sizes if math.prod(g) in worlds), key=lambda g: (math.prod(g), g))


FACTORS["grid"] = tuple(grids(1, 2, 4))


def valid(case: dict[str, Any]) -> bool:
    """Whether the configuration allows it; keys may be missing."""
    pp, _, _, tp = case.get("grid", (1, 1, 1, 2))
    if pp > 1 and case.get("zero", 0) > 1:
        return False
    return not (tp == 1 and (case.get("sequence_parallel", False) or case.get("overlap", False)))


def every() -> list[dict[str, Any]]:
    """Every grid with every stage, tied or not, with and without sequence parallelism; what else there is takes turns."""
    cases = []
    keys = ("grid", "zero", "tied", "sequence_parallel")
    for values in itertools.product(*(FACTORS[key] for key in keys)):
        case = dict(zip(keys, values))
        if valid(case):
            n = len(cases)
            case |= {"recompute": FACTORS["recompute"][n % 3], "dropout": n % 2 == 1, "smoothing": n // 2 % 2 == 1}
            case["overlap"] = case["grid"][3] > 1 and n // 3 % 2 == 0
            cases.append(case)
    return cases


def pairwise() -> list[dict[str, Any]]:
    """Few cases that hold every valid pair of two settings: always the candidate with the most pairs that are still missing."""
    names = list(FACTORS)
    candidates = [c for values in itertools.product(*FACTORS.values()) if valid(c := dict(zip(names, values)))]

    def pairs(case):
        return {(a, case[a], b, case[b]) for a, b in itertools.combinations(names, 2)}

    missing = set().union(*map(pairs, candidates))
    known = [(case, pairs(case)) for case in candidates]
    chosen = []
    while missing:
        best, found = max(known, key=lambda item: len(item[1] & missing))
        chosen.append(best)
        missing -= found
    return chosen


def overrides(case: dict[str, Any]) -> tuple[dict[str, int], int, list[str]]:
    """(grid, ZeRO stage, overrides) for tests/layouts.py."""
    more = [f"model.tie_embeddings={str(case['tied']).lower()}"]
    more += [f"parallel.activation_checkpointing={case['recompute']}"] if case["recompute"] != "none" else []
    more += ["parallel.sequence_parallel=true"] if case["sequence_parallel"] else []
    more += ["parallel.tensor_parallel_overlap=false"] if case["grid"][3] > 1 and not case["overlap"] else []
    more += ["model.hidden_dropout=0.1"] if case["dropout"] else []
    more += ["optim.label_smoothing=0.1", "optim.z_loss=1e-3"] if case["smoothing"] else []
    return dict(zip(AXES, case["grid"])), case["zero"], more
