"""The README's quick start, shrunk: prepare, train with agents, the random control, report; and the three ways to start a run."""

import json
import shutil
from pathlib import Path

import pytest
from command_support import MADS, REPOSITORY, environment, free_port, run, settings
from run_support import PREPARE, curve, write_corpus

CORPUS = [
    *PREPARE,
    "data.paths=[corpus.jsonl]",
    "data.reference_paths.galley=galley.jsonl",
    "data.reference_paths.voyage=voyage.jsonl",
    "data.dir=prepared",
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("quick"))
    done = run([*MADS, "prepare", *CORPUS], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "prepared"


def test_make_demo_trains_a_run_and_its_control_and_reports_both(tmp_path):
    """The README's first command as it is written, after the installation, on a small corpus and a small model."""
    write_corpus(tmp_path)
    overrides = [
        *CORPUS,
        "train.steps=12",
        "train.global_batch_size=8",
        "train.micro_batch_size=2",
        "selection.interval=5",
        "train.eval_interval=6",
        "train.log_interval=1",
        "schedule.warmup_steps=2",
    ]
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
    assert set(first["theta"]) == {"quality", "domain", "topic"} and first["theta"] != last["theta"]
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


def test_deepspeed_torchrun_and_mads_train_compute_the_same(prepared, tmp_path):
    commands = {
        "deepspeed": ["bash", REPOSITORY / "launch" / "deepspeed.sh"],
        "torchrun": ["bash", REPOSITORY / "launch" / "torchrun.sh"],
        "mads": [*MADS, "train", "--workers", 2],
    }
    python = MADS[0]
    port = free_port()
    curves = {}
    for name, command in commands.items():
        overrides = settings(prepared, tmp_path / name, "train.steps=3")
        done = run([*command, *overrides], tmp_path, PROCESSES="2", PYTHON=python, MASTER_PORT=port)
        assert done.returncode == 0, (name, done.stderr[-3000:])
        curves[name] = curve(tmp_path / name)
        assert json.loads((tmp_path / name / "environment.json").read_text())["world_size"] == 2
    assert len([m for m in curves["mads"][0] if m["kind"] == "train"]) == 3
    assert curves["deepspeed"] == curves["mads"] and curves["torchrun"] == curves["mads"]


def test_bad_input_to_any_launcher_is_told_once(prepared, tmp_path):
    for script in ("deepspeed.sh", "torchrun.sh"):
        command = ["bash", REPOSITORY / "launch" / script, *settings(prepared, tmp_path / "run", "train.nonsense=3")]
        done = run(command, tmp_path, PROCESSES="2", PYTHON=MADS[0], MASTER_PORT=free_port())
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
