"""Every mutant of tests/mutants turns its check red.

One case is one file of mutants, run by pytest in a process of its own. The page lists each mutant and the check that it turns
red.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "mutants"
LIMIT_S = 1800.0


def cases() -> list[dict]:
    return [{"file": path.name, "world": 4} for path in sorted(FOLDER.glob("test_*_mutants.py")) + [FOLDER / "test_mutants.py"]]


def name_of(case: dict) -> str:
    return case["file"]


def run_case(case: dict) -> dict:
    """The mutants of a file and how many there are.

    Raises:
        AssertionError: with pytest's output, if one is not caught or was not run.
    """
    known = {m.name: m for m in importlib.import_module(Path(case["file"]).stem).MUTANTS}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--all", str(FOLDER / case["file"]), f"--junitxml={report}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parents[1])
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
        caught = caught_in(report, known)
    assert sorted(caught) == sorted(known), f"mutants that were not run: {sorted(set(known) - set(caught))}"
    rows = [{"mutant": name, "breaks": known[name].target, "turns red": known[name].check} for name in sorted(known)]
    return {"mutants": len(caught), "slowest, s": max(caught.values()), "rows": rows}


def caught_in(report: Path, known: dict) -> dict[str, float]:
    """Seconds by name, of the mutants that a JUnit report says were caught."""
    found = {}
    for test in ElementTree.parse(report).getroot().iter("testcase"):
        name = test.get("name", "").partition("[")[2].rpartition("]")[0]
        if name in known and not any(test.find(outcome) is not None for outcome in ("failure", "error", "skipped")):
            found[name] = float(test.get("time", 0))
    return found


ROWS = True
