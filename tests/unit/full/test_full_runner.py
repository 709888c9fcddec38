"""The runner of exhaustive suites: it goes on after a kill, repeats what failed, outlives cases that hang or die."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

FULL = Path(__file__).resolve().parents[2] / "full"
SUITE = '''"""A toy suite for the runner's own test.

More words."""
import os, time
from pathlib import Path

FOLDER = Path(__file__).parent


def cases():
    return [{"do": what, "world": 1} for what in ("measure", "more", "fail", "hang", "die", "last")]


def name_of(case):
    return case["do"]


def run_case(case):
    with open(FOLDER / "runs", "a") as f:
        f.write(case["do"] + "\\n")
    if case["do"] in ("measure", "more"):
        return {"deviation": 1e-9 if case["do"] == "more" else 3e-7, "words": "a|b"}
    if (FOLDER / "mended").exists():
        return {}
    if case["do"] == "fail":
        assert 1 == 2, "one is not two"
    if case["do"] == "hang":
        (FOLDER / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    if case["do"] == "die":
        os._exit(3)


ROWS = True
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "toy_suite.py").write_text(SUITE)
    return tmp_path


def command(folder, *options):
    places = ["--suites", str(folder), "--record", str(folder / "record"), "--pages", str(folder / "pages")]
    return [sys.executable, str(FULL / "run.py"), *places, *options]


def run(folder, *options):
    return subprocess.run(command(folder, *options), capture_output=True, text=True, timeout=120)


def runs(folder):
    return (folder / "runs").read_text().split()


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_failures_are_recorded_repeated_and_told_on_the_page(folder):
    first = run(folder, "--limit-s", "2")
    assert first.returncode == 1, first.stdout + first.stderr
    assert runs(folder) == ["measure", "more", "fail", "hang", "die", "last"]  # it went on after each failure
    assert "[3/6] toy_suite fail: failed in " in first.stdout and "one is not two" in first.stdout
    assert "hang: timeout in 2" in first.stdout and "die: died in " in first.stdout
    assert "3 passed, 3 failed" in first.stdout
    assert not alive(int((folder / "pid").read_text()))  # a case that hangs is ended
    page = (folder / "pages" / "toy_suite.md").read_text()
    assert page.startswith("# A toy suite for the runner's own test\n")
    assert "6: 3 passed, 3 failed, 0 not run" in page and "| all | deviation | 3e-07 | measure |" in page
    assert "| more | 1e-09 | a\\|b |" in page and "### fail: failed" in page and "AssertionError: one is not two" in page
    assert "status 3" in page and "not finished within 2 s" in page
    (record,) = (folder / "record").glob("*.jsonl")
    entries = [json.loads(line) for line in record.read_text().splitlines()]
    assert [e["status"] for e in entries] == ["passed", "passed", "failed", "timeout", "died", "passed"]
    assert entries[0]["case"] == {"do": "measure", "world": 1} and entries[0]["values"]["deviation"] == 3e-7

    (folder / "mended").touch()
    second = run(folder)
    assert second.returncode == 0, second.stdout + second.stderr
    assert runs(folder)[6:] == ["fail", "hang", "die"]  # what had passed was not repeated
    assert "3 passed before" in second.stdout
    page = (folder / "pages" / "toy_suite.md").read_text()
    assert "6: 6 passed, 0 failed, 0 not run" in page and "Failures" not in page


def test_a_killed_run_goes_on_where_it_was(folder):
    process = subprocess.Popen(command(folder), stdout=subprocess.PIPE, text=True)
    wait_until((folder / "pid").exists)
    process.kill()
    process.communicate()
    wait_until(lambda: not alive(int((folder / "pid").read_text())))  # its worker does not outlive it
    (record,) = (folder / "record").glob("*.jsonl")
    assert [json.loads(line)["name"] for line in record.read_text().splitlines()] == ["measure", "more", "fail"]
    with open(record, "a") as f:
        f.write('{"suite": "toy_suite", "na')  # a line that the kill cut short
    listed = run(folder, "--list")
    assert listed.returncode == 0 and "passed    toy_suite measure" in listed.stdout
    assert "failed    toy_suite fail" in listed.stdout and "not run   toy_suite hang" in listed.stdout
    (folder / "mended").touch()
    done = run(folder, "--limit", "2")
    assert done.returncode == 0 and runs(folder) == ["measure", "more", "fail", "hang", "fail", "hang"]
    assert "6: 4 passed, 0 failed, 2 not run" in (folder / "pages" / "toy_suite.md").read_text()
    assert run(folder, "--filter", "last").returncode == 0 and runs(folder)[-1] == "last"


def test_other_sources_start_anew_and_unknown_suites_are_told(folder):
    assert run(folder, "--filter", "m").returncode == 0  # measure, more
    (folder / "toy_suite.py").write_text(SUITE + "\n# another state\n")
    run(folder, "--filter", "measure")
    assert runs(folder) == ["measure", "more", "measure"]
    unknown = run(folder, "--suite", "nothing")
    assert unknown.returncode != 0 and "there are ['toy_suite']" in unknown.stderr


def test_the_suites_of_the_repository_have_unique_names_and_json_cases(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FULL), str(FULL.parent), *sys.path])
    import full_suites

    found = full_suites.load(FULL)
    assert {"mutant_runs", "topology_matrix", "corruption_matrix"} <= {s.name for s in found}
    for suite in found:
        cases = suite.cases()
        assert cases and json.loads(json.dumps([c for _, c in cases])) == [c for _, c in cases], suite.name
        assert suite.title and not any("\n" in name for name, _ in cases)
    assert not any(path.name.startswith("test_") for path in FULL.glob("*.py"))  # pytest leaves them alone
