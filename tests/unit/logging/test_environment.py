import importlib.metadata
import json
import subprocess

from mads.logging import environment, write_environment
from mads.logging.environment import git_state


def git(folder, *arguments):
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_git_state_knows_the_commit_and_whether_the_code_differs_from_it(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("a")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "modified": False}
    (tmp_path / "code.py").write_text("b")
    assert git_state(tmp_path) == {"commit": commit, "modified": True}
    untracked = tmp_path / "site-packages"
    untracked.mkdir()
    assert git_state(untracked) is None  # installed inside somebody else's checkout


def test_environment_names_versions_and_no_user():
    record = environment(4, "cpu", ["/home/alice/.venv/bin/mads", "train", "run_dir=/home/alice/runs/a", "data.dir=/root/data"])
    assert record["command"] == ["mads", "train", "run_dir=~/runs/a", "data.dir=~/data"]
    assert record["packages"]["torch"] == importlib.metadata.version("torch")
    assert (record["world_size"], record["device"]) == (4, "cpu")
    assert "alice" not in json.dumps(record)


def test_a_resumed_run_keeps_what_it_was_started_with(tmp_path):
    for world, resume in ((1, None), (2, 10), (4, 20)):
        write_environment(tmp_path, environment(world, "cpu", ["mads"]), resume)
    value = json.loads((tmp_path / "environment.json").read_text())
    assert value["world_size"] == 4 and value["resume_step"] == 20
    assert [(e["world_size"], e["resume_step"]) for e in value["earlier_starts"]] == [(1, None), (2, 10)]
    write_environment(tmp_path, environment(8, "cpu", ["mads"]))
    assert json.loads((tmp_path / "environment.json").read_text())["earlier_starts"] == []
