"""`make test` in two parts: every test belongs to one, a failure of either is the whole's, and what failed stands together."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "side_by_side.py"
PASSES, FAILS = "def test_it():\n    pass\n", "def test_it():\n    assert 1 == 2, 'one is not two'\n"


@pytest.fixture
def suite(tmp_path):
    """A suite of two tests below tests/, with the script beside them; returns a function that writes them."""
    tests = tmp_path / "tests"
    (tests / "dist").mkdir(parents=True)
    (tests / "unit").mkdir()
    (tests / SCRIPT.name).write_bytes(SCRIPT.read_bytes())

    def write(ranks, other):
        (tests / "dist" / "test_ranks.py").write_text(ranks)
        (tests / "unit" / "test_other.py").write_text(other)
        return [sys.executable, str(tests / SCRIPT.name)]

    return write


def run(command, *options):
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)


def test_both_parts_run_and_share_no_test(suite):
    done = run(suite(PASSES, PASSES))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^(\w+)\| (\d+ passed)", done.stdout, re.M).count(("ranks", "1 passed")) == 1
    assert ("other", "1 passed") in re.findall(r"^(\w+)\| (\d+ passed)", done.stdout, re.M)
    assert done.stdout.splitlines()[-1] == "ranks: passed, other: passed"


@pytest.mark.parametrize("ranks, other, failed", [(FAILS, PASSES, "ranks"), (PASSES, FAILS, "other")])
def test_a_failure_of_either_part_fails_the_whole_and_is_shown_in_one_piece(suite, ranks, other, failed):
    done = run(suite(ranks, other))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if "FAILURES" in line)
    last = next(i for i, line in enumerate(lines) if "1 failed" in line)
    assert all(line.startswith(f"{failed}| ") for line in lines[first : last + 1])
    assert any("one is not two" in line for line in lines[first:last])
    assert f"{failed}: exit code 1" in lines[-1] and lines[-1].count("passed") == 1


def test_options_go_to_both_and_a_part_that_they_leave_empty_is_no_failure(suite):
    command = suite(PASSES, PASSES.replace("test_it", "test_another"))
    done = run(command, "-k", "another")
    assert done.returncode == 0 and "ranks: no test" in done.stdout.splitlines()[-1], done.stdout
    assert run(command, "-k", "nothing").returncode == 5
