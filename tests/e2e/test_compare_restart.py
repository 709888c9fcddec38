"""`mads compare` as a user runs it: two strategies, two seeds, killed in the middle and started again."""

import json
import os
import signal

import pytest
from command_support import MADS, alive, children, expect_bad_input, run, start, wait_until
from run_support import OVERRIDES, REWARD, prepare_small

FILE = """
defaults: [comparison_schema, _self_]
strategies:
  random: [selection=random]
  mads: {mads}
seeds: [0, 1]
overrides: {overrides}
cooldown: 0
treatment: mads
primary: random
"""


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """(prepared directory, comparison file)."""
    folder = tmp_path_factory.mktemp("comparison")
    prepared = prepare_small(folder)
    overrides = ["data=prepared" if o == "data=jsonl" else o for o in OVERRIDES if not o.startswith("data.paths")]
    path = folder / "tiny.yaml"
    path.write_text(
        FILE.format(mads=json.dumps(["selection=mads", *REWARD]), overrides=json.dumps([*overrides, "checkpoint.interval=2"]))
    )
    return prepared, path


def test_killed_in_the_middle_and_started_again(comparison, tmp_path):
    prepared, path = comparison
    folder = tmp_path / "F"
    command = [*MADS, "compare", "--folder", folder, f"compare={path}", f"data.dir={prepared}"]
    process = start(command, tmp_path, tmp_path / "log")
    first, trunk = folder / "results" / "random-0.json", folder / "runs" / "mads-0" / "trunk"
    saved = trunk / "checkpoints" / "step-00000004"
    wait_until(lambda: saved.exists() or process.poll() is not None, "no checkpoint of the second cell", timeout=600)
    assert process.poll() is None, (tmp_path / "log").read_text()
    child = children(process.pid)[-1]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not alive(child), "the training outlived its command", timeout=60)
    finished = first.stat().st_mtime_ns
    assert not (folder / "results" / "mads-0.json").exists()

    again = run(command, tmp_path, timeout=900)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "4 cells, 1 done before, 3 to run" in again.stdout and "cells done" in again.stdout
    assert first.stat().st_mtime_ns == finished
    results = {p.stem: json.loads(p.read_text()) for p in (folder / "results").glob("*.json")}
    assert sorted(results) == ["mads-0", "mads-1", "random-0", "random-1"]
    lines = [json.loads(v) for v in (trunk / "metrics.jsonl").read_text().splitlines()]
    assert [v["step"] for v in lines if v["kind"] == "train"] == list(range(1, 13))
    assert json.loads((trunk / "environment.json").read_text())["resume_step"] >= 4
    assert results["mads-0"]["stages"]["trunk"]["starts"] == 2
    # Strategies share initialisation within a seed: equal losses before the first step, other ones with another seed.
    start_of = {name: r["curve"]["references_mean"][0] for name, r in results.items()}
    assert start_of["mads-0"] == start_of["random-0"] != start_of["random-1"] == start_of["mads-1"]
    for result in results.values():
        assert result["steps"] == 12 and result["points"][-1]["references_mean"] > 0
        for labels in result["mix"].values():
            assert sum(v["all"] for v in labels.values()) == pytest.approx(1, abs=1e-4)
    page, table = (folder / "compare.html").read_text(), (folder / "compare.md").read_text()
    assert "| mads | 2 |" in table and "<svg" in page and "±" in table


@pytest.mark.full
def test_a_failing_strategy_is_listed_and_the_others_go_on_in_parallel(comparison, tmp_path):
    prepared, path = comparison
    folder = tmp_path / "F"
    rate = "strategies.wild=['selection=random','optim.lr=1e30','optim.grad_clip=0']"
    options = [f"compare={path}", f"data.dir={prepared}", "seeds=[0]", rate]
    done = run([*MADS, "compare", "--jobs", "2", "--folder", folder, *options], tmp_path, timeout=900)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wild-0 failed: trunk: exit code 1" in done.stderr
    assert sorted(p.stem for p in (folder / "results").glob("*.json")) == ["mads-0", "random-0"]
    assert "wild-0" in (folder / "compare.md").read_text()
    other = run([*MADS, "compare", "--folder", folder, *options, "optim.beta1=0.5"], tmp_path, timeout=300)
    expect_bad_input(other, "optim.beta1: 0.9 then, 0.5 now", "choose another --folder")


@pytest.mark.full
def test_a_branch_is_the_run_of_its_own_length_and_is_evaluated(comparison, tmp_path):
    """One strategy; its cooled ends equal, number by number, runs from scratch with schedule=wsd."""
    prepared, path = comparison
    folder, corpus = tmp_path / "F", path.parent
    tasks = [f"evaluation.{task}={corpus}/{task}.jsonl" for task in ("galley", "voyage")]
    shape = ["cooldown=0.2", "branches=[0.5]", "train.steps=20", "apart=[voyage]", "destroyed.domain=[numbers]", "seeds=[1]"]
    command = [*MADS, "compare", "--folder", folder, f"compare={path}", f"data.dir={prepared}", *tasks, *shape, "--only", "mads"]
    done = run(command, tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((folder / "results" / "mads-1.json").read_text())
    assert [(p["fraction"], p["steps"]) for p in result["points"]] == [(0.5, 10), (1.0, 20)]
    assert [d["step"] for d in result["rounds"]] == [0, 5, 10, 15]
    for point in result["points"]:
        scores = point["evaluation"]["tasks"]
        assert point["evaluation"]["mean_bits_per_byte"] == scores["galley"]["bits_per_byte"] != scores["voyage"]["bits_per_byte"]
        alone = tmp_path / f"alone-{point['steps']}"
        overrides = ["data=prepared" if o == "data=jsonl" else o for o in OVERRIDES if not o.startswith("data.paths")]
        schedule = ["schedule=wsd", "schedule.decay_fraction=0.2", f"train.steps={point['steps']}", "train.seed=1"]
        own = [*overrides, *REWARD, f"data.dir={prepared}", *schedule, f"run_dir={alone}"]
        trained = run([*MADS, "train", "--workers", "1", *own], tmp_path, timeout=900)
        assert trained.returncode == 0, trained.stderr
        lines = [json.loads(v) for v in (alone / "metrics.jsonl").read_text().splitlines()]
        final = [v for v in lines if v["kind"] == "eval"][-1]
        assert (point["tokens"], point["references"]) == (final["tokens"], pytest.approx(final["references"], abs=2e-6))
        assert point["heldout"] == pytest.approx(final["heldout"], abs=2e-6)
    assert "voyage (apart)" in (folder / "compare.md").read_text()
