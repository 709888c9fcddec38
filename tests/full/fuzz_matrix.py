"""Damaged inputs of every kind and format are read or rejected.

150 inputs of each kind (8 huge ones, 10 bombs), read by benchmarks/fuzz.py in a process of its own with limited memory; the tests
read 8 of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from fuzz_inputs import DAMAGES

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"huge": 8, "bomb": 10}
LIMIT_S = 1800.0


def cases() -> list[dict]:
    return [
        {"damage": damage, "format": format, "count": COUNTS.get(damage, 150), "world": 1}
        for damage, formats in DAMAGES.items()
        for format in formats
    ]


def name_of(case: dict) -> str:
    return f"{case['damage']}, {case['format']}"


def group_of(case: dict) -> str:
    return case["damage"]


def run_case(case: dict) -> dict:
    """What came out of the inputs of one kind.

    Raises:
        AssertionError: with the problems that the judge found.
    """
    command = [sys.executable, "-m", "benchmarks.fuzz", "--group", case["damage"], case["format"], str(case["count"])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-3000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["problems"] == [] and found["raised"] == 0 and found["inputs"] == case["count"], found["problems"][:20]
    return {"peak MiB": round(found["peak"]), "slowest input, CPU s": found["slowest"], "altered documents": found["altered"]}
