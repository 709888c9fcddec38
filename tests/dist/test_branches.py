"""Branches of a run: with the same schedule they are the trunk bit for bit, with another one they resume exactly; what is no
branch is told. And checkpoints that are kept."""

import shutil

import pytest
from harness import run_ranks
from run_support import curve, prepare_small
from test_resume import assert_same, train_until

from mads.config.compose import ConfigError

TRUNK = ["schedule=constant", "checkpoint.keep_last=1", "checkpoint.keep_steps=[4,7]"]
COOLDOWN = ["schedule=wsd", "schedule.decay_fraction=0.3", "train.steps=10"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return str(prepare_small(tmp_path_factory.mktemp("corpus")))


def train_all(prepared, folder):
    """The trunk, an unchanged branch from the middle of its second round, and a cooldown branch in one life and in two."""
    point = f"train.branch_from={folder}/trunk/checkpoints/step-00000007"
    trunk = train_until(prepared, f"{folder}/trunk", [12], TRUNK)
    same = train_until(prepared, f"{folder}/same", [12], ["schedule=constant", point])
    whole = train_until(prepared, f"{folder}/whole", [10], [*COOLDOWN, point])
    shutil.move(f"{folder}/trunk", f"{folder}/elsewhere")
    shutil.copytree(f"{folder}/elsewhere", f"{folder}/trunk")
    train_until(prepared, f"{folder}/halves", [8], [*COOLDOWN, point])
    shutil.rmtree(f"{folder}/trunk")  # a branch that has a checkpoint of its own needs its trunk no more
    return trunk, same, whole, train_until(prepared, f"{folder}/halves", [10], [*COOLDOWN, point])


def after(run, step):
    metrics, decisions = curve(run)
    return [m for m in metrics if m["step"] > step], [d for d in decisions if d["step"] > step]


def test_an_unchanged_branch_is_the_trunk_and_a_cooldown_resumes_exactly(prepared, tmp_path):
    [(trunk, same, whole, halves)] = run_ranks(1, train_all, prepared, str(tmp_path), timeout=400)
    kept = sorted(p.name for p in (tmp_path / "elsewhere" / "checkpoints").glob("step-*"))
    assert kept == ["step-00000004", "step-00000007", "step-00000012"]
    assert_same(same, trunk)
    assert after(tmp_path / "same", 7) == after(tmp_path / "elsewhere", 7) and after(tmp_path / "same", 7)[1]
    assert_same(halves, whole)
    assert curve(tmp_path / "halves") == curve(tmp_path / "whole")
    rates = [m["lr"] for m in curve(tmp_path / "whole")[0] if m["kind"] == "train"]
    peak = [m["lr"] for m in curve(tmp_path / "elsewhere")[0] if m["kind"] == "train"][-1]
    assert rates == pytest.approx([peak, 2 / 3 * peak, 1 / 3 * peak])  # linear from the branch point, 0 after the last step
    assert (tmp_path / "whole" / "pool.jsonl").read_text() == (tmp_path / "elsewhere" / "pool.jsonl").read_text()


def wrong_branches(prepared, folder):
    """The messages of branches that cannot be."""
    from run_support import run_config, trainer

    point = f"{folder}/trunk/checkpoints/step-00000004"
    train_until(prepared, f"{folder}/trunk", [4], ["schedule=constant", "checkpoint.keep_steps=[4]"])
    damaged = shutil.copytree(point, f"{folder}/damaged/checkpoints/step-00000004")
    with open(f"{damaged}/pending_ids.npy", "ab") as file:
        file.write(b"x")
    told = []
    for path, run_dir, *overrides in (
        (f"{folder}/nothing", "a"),
        (point, "a", "optim.lr=0.5", "selection.probes=45"),
        (point, "a", "train.steps=4"),
        (point, "trunk", "train.steps=9"),
        (damaged, "a"),
    ):
        try:
            trainer(run_config(prepared, f"{folder}/{run_dir}", f"train.branch_from={path}", *overrides))
            told.append("nothing")
        except (ConfigError, RuntimeError) as error:
            told.append(f"{type(error).__name__} {error}")
    return told


def test_what_is_no_branch_is_told(prepared, tmp_path):
    [told] = run_ranks(1, wrong_branches, prepared, str(tmp_path), timeout=240)
    expected = [
        "ConfigError train.branch_from=.*there is no checkpoint; give a folder RUN/checkpoints",
        r"(?s)other settings:.*optim.lr: 0.001 then, 0.5 now\n  selection.probes: 40 then, 45 now",
        "it is at step 4, so train.steps=4 leaves nothing to train",
        "ResumeError .*holds a run with other settings",
        "ConfigError train.branch_from=.*pending_ids.npy is damaged",
    ]
    for message, pattern in zip(told, expected, strict=True):
        with pytest.raises(ValueError, match=pattern):
            raise ValueError(message)
    assert "schedule." not in told[1].split("other settings:")[1], "another schedule is what branches are for"
