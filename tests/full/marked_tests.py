"""Suite: every test that `make test` leaves out, by pytest in a process of its own for each file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
LIMIT_S = 1800.0


def cases() -> list[dict]:
    """The files with tests that are marked `full`."""
    files = sorted(p for p in TESTS.rglob("test_*.py") if "mark.full" in p.read_text(encoding="utf-8"))
    return [{"file": p.relative_to(TESTS).as_posix(), "world": 4} for p in files if p.parent.name != "style"]


def name_of(case: dict) -> str:
    return case["file"]


def run_case(case: dict) -> None:
    """Run a file's marked tests.

    Raises:
        AssertionError: with pytest's output, if one fails.
    """
    command = [sys.executable, "-m", "pytest", "-q", "--all", "-m", "full", str(TESTS / case["file"])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
