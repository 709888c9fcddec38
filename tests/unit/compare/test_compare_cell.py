"""Stages of a cell: what is run, what is not run again, how a failure is told. The commands themselves are stood in for by a
function that leaves what they leave; tests/e2e/test_compare_restart.py runs the real ones."""

import json
from types import SimpleNamespace

import pytest

import mads.compare.cell as cells
from mads.compare.plan import Branch, Cell, result_path, work_folder
from mads.compare.progress import Standing, error_of, line, standing, trained_steps
from mads.launch.children import Ended, child_environment, run_mads

BRANCHES = (Branch(0.5, 4, 5), Branch(1.0, 8, 10))
CELL = Cell(
    "mads", 3, 10, 8, BRANCHES, ("selection=mads", "schedule=constant"), ("selection=mads", "schedule=wsd"), {"a": 1}, "d", 64
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A planned cell, and the list of commands that were run: each writes the end line or the evaluation that is asked of it."""
    tmp_path = tmp_path / "F"
    tmp_path.mkdir()
    entries = {"parent": 0, "threads": 1, "evaluation": {"arc": "/x/arc.jsonl"}, "apart": ["arc2"], "destroyed": {}}
    monkeypatch.setattr(cells, "read_plan", lambda path: (entries, {CELL.name: CELL}))
    monkeypatch.setattr(cells, "collect", lambda cell, work, plan, taken: {"taken": taken})
    commands, broken = [], {}

    def run(arguments, log, threads):
        commands.append(arguments)
        with open(log, "a") as file:
            file.write(f"ran {len(commands)}\n")
            if broken.get(len(commands)):
                file.write("mads train: the disk is full\n")
                return Ended(1, 1.0, 0.5)
        value = {a.split("=", 1)[0]: a.split("=", 1)[1] for a in arguments if "=" in a}
        if arguments[0] == "train":
            run_dir = cells.Path(value["run_dir"].strip("'"))
            run_dir.mkdir(exist_ok=True)
            end = {"kind": "end", "steps": int(value.get("train.stop_at", value["train.steps"])), "tokens": 1, "seconds": 1.0}
            (run_dir / "metrics.jsonl").write_text(json.dumps(end) + "\n")
        else:
            out, run_dir = cells.Path(arguments[arguments.index("--out") + 1]), cells.Path(arguments[1])
            out.write_text(json.dumps({"step": cells.ended_at(run_dir)}))
        return Ended(0, 2.0, 1.5)

    monkeypatch.setattr(cells, "run_mads", run)
    return SimpleNamespace(path=tmp_path, commands=commands, broken=broken, work=work_folder(tmp_path, CELL.name))


def job(folder):
    return cells.run_job(SimpleNamespace(plan=str(folder.path / "plan.json"), cell=CELL.name))


def test_trunk_branches_and_evaluations_run_in_order(folder):
    assert job(folder) == "done"
    trunk = f"{folder.work}/trunk"
    assert [c[0] for c in folder.commands] == ["train", "train", "eval", "train", "eval"]
    first, branch, evaluation = folder.commands[:3]
    assert first[1:] == ["--workers", "1", *CELL.trunk, "train.steps=10", "train.stop_at=8", f"run_dir='{trunk}'"]
    assert f"train.branch_from='{trunk}/checkpoints/step-00000004'" in branch and "train.steps=5" in branch
    assert "schedule=wsd" in branch and "schedule=constant" not in branch
    assert evaluation[1:] == [
        f"{folder.work}/branch-0.50",
        "arc=/x/arc.jsonl",
        "--apart=arc2",
        "--out",
        f"{folder.work}/evaluation-0.50.json",
    ]
    taken = json.loads(result_path(folder.path, CELL.name).read_text())["taken"]
    assert taken["branch 1"] == {"seconds": 2.0, "cpu_seconds": 1.5, "starts": 1} and len(taken) == 5
    assert job(folder) == "skipped" and len(folder.commands) == 5


def check_going_on(folder):
    """A failure in the fourth stage is told with its last words; the next start begins there."""
    folder.broken[4] = True
    assert job(folder) == "failed"
    assert not result_path(folder.path, CELL.name).exists()
    told = error_of(folder.path, CELL)
    assert told.startswith("branch 1: exit code 1") and "the disk is full" in told and "ran 1\n" not in told
    assert standing(folder.path, [CELL]).failed == (CELL.name,)
    folder.broken.clear()
    assert job(folder) == "done"
    assert [c[0] for c in folder.commands] == ["train", "train", "eval", "train", "train", "eval"]
    taken = json.loads(result_path(folder.path, CELL.name).read_text())["taken"]
    assert taken["branch 1"] == {"seconds": 3.0, "cpu_seconds": 2.0, "starts": 2} and taken["trunk"]["starts"] == 1


def test_a_failed_cell_goes_on_where_it_failed(folder):
    check_going_on(folder)


def test_runs_of_other_settings_are_refused(folder):
    folder.work.mkdir(parents=True)
    (folder.work / "cell.json").write_text(json.dumps({"settings": {"a": 2}}))
    assert job(folder) == "failed" and folder.commands == []
    assert "a: 2 then, 1 now" in error_of(folder.path, CELL)


def test_a_command_that_ends_well_without_its_result_is_a_failure(folder, monkeypatch):
    monkeypatch.setattr(cells, "run_mads", lambda *_: Ended(0, 1.0, 1.0))
    folder.work.mkdir(parents=True)
    (folder.work / "log.txt").write_text("")
    assert job(folder) == "failed" and "without its result" in error_of(folder.path, CELL)


def test_a_cell_that_another_process_runs_is_left_alone(folder):
    import fcntl

    folder.work.mkdir(parents=True)
    with open(folder.work / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert job(folder) == "failed" and folder.commands == []
    assert "another process" in error_of(folder.path, CELL)


def test_progress_counts_trunk_and_branches(folder):
    def trained(run, step):
        (folder.work / run).mkdir(parents=True)
        lines = [json.dumps({"kind": "train", "step": s}) for s in range(1, step + 1)]
        (folder.work / run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "tr')

    assert trained_steps(folder.path, CELL) == 0
    trained("trunk", 8)
    trained("branch-1.00", 9)
    (folder.work / "state.json").write_text('{"stage": "branch 1"}')
    now = standing(folder.path, [CELL])
    assert now == Standing((), (), (CELL.name,), (8 + 1) * 64)
    said = line(now, Standing((), (), (), 64), 2.0, [CELL])
    assert "0 of 1 cells done, 1 running (mads-3)" in said and "576 of 704 tokens" in said
    assert "256 tokens/s" in said and "time left 0s" in said  # 128 tokens at 256 a second


def test_a_child_has_one_core_and_no_place_in_a_job_around_it():
    variables = child_environment(1, {"RANK": "3", "WORLD_SIZE": "4", "HOME": "/h", "OMP_NUM_THREADS": "8"})
    assert variables["OMP_NUM_THREADS"] == "1" and variables["HOME"] == "/h"
    assert "RANK" not in variables and "WORLD_SIZE" not in variables


def test_a_childs_end_and_cost_are_known(tmp_path):
    ended = run_mads(["no-such-command"], tmp_path / "log")
    assert ended.code == 2 and 0 < ended.cpu_seconds and "no command 'no-such-command'" in (tmp_path / "log").read_text()
