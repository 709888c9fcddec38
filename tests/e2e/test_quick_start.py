"""The README's quick start, shrunk: prepare, train with agents, the random control, report; and the three ways to start a run."""

import json
import shutil
from pathlib import Path

import pytest
from command_support import MADS, REPOSITORY, environment, run, settings
from harness import run_ranks
from run_support import PREPARE, curve, trainer, write_corpus

from mads.config.compose import compose
from mads.config.validate import validate
from mads.launch.processes import free_port

CORPUS = [
    *PREPARE,
    "data.paths=[corpus.jsonl]",
    "data.reference_paths.galley=galley.jsonl",
    "data.reference_paths.voyage=voyage.jsonl",
    "data.dir=prepared",
]


SMALL = [
    "train.steps=12",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "selection.interval=5",
    "train.eval_interval=6",
    "train.log_interval=1",
    "schedule.warmup_steps=2",
]


def check_trains(overrides):
    """The same run in workers of a pool, which have everything imported."""
    config = compose(overrides)
    validate(config, 2)
    trainer(config).run()


def test_make_demo_trains_a_run_and_its_control_and_reports_both(tmp_path):
    """The README's first command as it is written, after the installation, on a small corpus and a small model."""
    write_corpus(tmp_path)
    overrides = [*CORPUS, *SMALL]
    make = ["make", "-f", REPOSITORY / "Makefile", "demo", "INSTALLED=", f"MADS={Path(MADS[0]).parent / 'mads'}"]
    done = run([*make, f"DEMO={' '.join(overrides)}"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a run without trouble has nothing to say there"
    assert done.stdout.count("step 12/12") == 2 and "open runs/mads/report.html" in done.stdout

    folder = tmp_path / "runs" / "mads"
    files = {p.name for p in folder.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "decisions.jsonl", "checkpoints"} <= files
    assert [p.name for p in (folder / "checkpoints").glob("step-*")] == ["step-00000012"]
    metrics, decisions = curve(folder)
    assert [m["step"] for m in metrics if m["kind"] == "train"] == list(range(1, 13))
    assert [d["round"] for d in decisions] == [0, 1, 2]
    first, last = decisions[0], decisions[-1]
    assert set(first["theta"]) == {"quality", "domain", "topic", "likeness"} and first["theta"] != last["theta"]
    assert sum(last["theta"].values()) == pytest.approx(1)
    for agent in first["theta"]:
        before, after = ([row["weight"] for row in d["labels"][agent]] for d in (first, last))
        assert before != after, f"the label weights of {agent} have not moved"
    control_metrics, control_decisions = curve(tmp_path / "runs" / "random")
    assert control_decisions[0]["theta"] == {} and control_metrics[0] == metrics[0], "both start from the same weights"

    page = (folder / "report.html").read_text()
    assert ">mads<" in page and ">random<" in page
    again = run([*MADS, "train", *overrides, "run_dir=runs/mads"], tmp_path)
    assert again.returncode == 0 and "is finished: 12 of 12 steps" in again.stdout
    run_ranks(2, check_trains, [*overrides, f"data.dir={tmp_path}/prepared", f"run_dir={tmp_path}/pool"], timeout=120)
    assert curve(tmp_path / "pool") == (metrics, decisions), "`mads train` computes what a trainer computes"


def test_deepspeed_and_torchrun_compute_what_mads_train_computes(prepared, tmp_path):
    """All three equal the trainer in a pool: these two here, `mads train` in the test above."""
    run_ranks(2, check_trains, settings(prepared, tmp_path / "pool", "train.steps=3"), timeout=120)
    expected = curve(tmp_path / "pool")
    assert len([m for m in expected[0] if m["kind"] == "train"]) == 3
    for name in ("deepspeed", "torchrun"):
        command = ["bash", REPOSITORY / "launch" / f"{name}.sh", *settings(prepared, tmp_path / name, "train.steps=3")]
        done = run(command, tmp_path, PROCESSES="2", PYTHON=MADS[0], MASTER_PORT=str(free_port()))
        assert done.returncode == 0, (name, done.stderr[-3000:])
        assert curve(tmp_path / name) == expected, name
        found = json.loads((tmp_path / name / "environment.json").read_text())
        assert found["world_size"] == 2 and found["resolved"]["grid"] == "PP(1)-DP(2)-CP(1)-TP(1)"
        kinds = {key: found["resolved"][key] for key in ("precision", "attention", "head", "optimizer", "communication")}
        assert list(kinds.values()) == ["fp32", "sdpa", "torch", "AdamW", "gloo"] and found["resolved"]["optimizer_fused"]


@pytest.mark.parametrize("script", ["deepspeed.sh", pytest.param("torchrun.sh", marks=pytest.mark.full)])
def test_bad_input_to_any_launcher_is_told_once(prepared, tmp_path, script):
    command = ["bash", REPOSITORY / "launch" / script, *settings(prepared, tmp_path / "run", "train.nonsense=3")]
    done = run(command, tmp_path, PROCESSES="2", PYTHON=MADS[0], MASTER_PORT=str(free_port()))
    assert done.returncode != 0
    assert done.stderr.count("Key 'nonsense' not in 'TrainConfig'") == 1, done.stderr


def test_the_shell_scripts_parse():
    scripts = [*(REPOSITORY / "launch").glob("*.sh"), *(REPOSITORY / "launch").glob("*.sbatch")]
    assert len(scripts) >= 4
    for script in scripts:
        done = run(["bash", "-n", script], REPOSITORY)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        if linter := shutil.which("shellcheck", path=environment()["PATH"]):
            assert run([linter, script], REPOSITORY).stdout == ""
