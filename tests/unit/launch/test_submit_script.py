"""The script of `mads submit`: against texts in golden/, and run by a real bash whose srun writes down what it is given."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from command_support import REPOSITORY

from mads.config.cluster import compose_cluster, quoted_value, validate_cluster
from mads.config.compose import ConfigError, compose
from mads.launch import exits
from mads.launch.script import Job, slurm_script

GOLDEN = Path(__file__).parent / "golden"
RUN = ["data=prepared", "data.dir=data/mine", "selection=mads"]
CASES = {
    "one_node": ([], Job(RUN, "/where/runs/a", "/where", ["python3"])),
    "two_nodes": (
        ["cluster=cpu", "cluster.nodes=2", "cluster.cpus_per_task=1", "cluster.time_limit=1:00:00"],
        Job(["data=prepared", "data.dir=data/mine", "run_dir=runs/a"], "/shared/runs/a", "/shared", ["/shared/venv/bin/python"]),
    ),
    "many": (
        [
            "cluster.nodes=4",
            "cluster.cpus_per_task=12",
            "cluster.memory=400G",
            "cluster.partition=gpu",
            "cluster.account=lab",
            "cluster.time_limit=2-00",
            "cluster.signal_s=300",
            "cluster.sbatch_options.qos=high",
            "cluster.sbatch_options.exclusive=true",
            "cluster.sbatch_options.comment='two words'",
            "cluster.setup=['module load cuda/12','export NCCL_DEBUG=WARN']",
            "cluster.python=[apptainer,exec,--nv,/where/my mads.sif,python3]",
        ],
        Job([*RUN, "run_dir=runs/b"], "/where/50% of it/runs/b", "/where/50% of it", ["python3"]),
    ),
    "array": (
        ["cluster=cpu", "cluster.nodes=2", "cluster.requeues=0", "cluster.signal_s=null"],
        Job(RUN, "/where/it's", "/where", ["python3"], [["train.seed=1"], ["train.seed=2", "optim.lr=1e-3"]]),
    ),
}
HOSTILE = [
    "a='two  spaces'",
    "b=it's",
    'c="double"',
    "d=$HOME and ${HOME} and $(touch oops) and `touch oops`",
    "e=line\nbreak",
    "f=back\\slash \\' \\\\",
    "g=!history * ? [a-z] ~ {1,2} # no comment ; & | < > ( )",
    "h=ü 漢 \u2028 \U0001f600",
    "-n",
    "",
    " ",
]
WORD = "import sys; from pathlib import Path\nPath(sys.argv[1]).write_text('\\0'.join(sys.argv[2:]))"


def cluster(*overrides):
    config = compose_cluster(overrides)
    validate_cluster(config)
    return config


def golden(name):
    overrides, job = CASES[name]
    config = cluster(*overrides)
    return slurm_script(config, Job(job.overrides, job.run_dir, job.folder, list(config.python) or job.python, job.tasks))


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_the_one_that_was_read_and_found_right(name):
    assert golden(name) == (GOLDEN / f"{name}.sh").read_text()


def test_the_page_shows_the_script_as_it_is():
    assert golden("two_nodes") in (REPOSITORY / "docs" / "slurm.md").read_text()


@pytest.mark.parametrize("name", CASES)
def test_a_shell_and_its_linter_take_it(name):
    assert subprocess.run(["bash", "-n", GOLDEN / f"{name}.sh"], capture_output=True).stderr == b""
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", GOLDEN / f"{name}.sh"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def fake(folder, name, body):
    path = folder / name
    path.write_text("#!/usr/bin/env bash\n" + body)
    path.chmod(0o755)


def run_script(folder, text, code=0, **variables):
    """(exit code, the words after `-m mads.train`, all words of srun, calls of scontrol)"""
    folder.mkdir(exist_ok=True)
    fake(folder, "srun", f'printf \'%s\\0\' "$@" > {folder}/words\nprintf %s "$MASTER_ADDR" > {folder}/address\nexit {code}\n')
    fake(
        folder,
        "scontrol",
        f"echo \"$*\" >> {folder}/asked\ncase $* in\n*hostnames*) printf 'n1\\nn2\\n' ;;\n"
        "*node*) echo 'A=1 NodeAddr=10.0.0.7 B=2' ;;\nesac\n",
    )
    (folder / "job.sh").write_text(text)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "MASTER_ADDR": "of the shell that submits",
    }
    done = subprocess.run(
        ["bash", folder / "job.sh"], cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=60
    )
    words = (folder / "words").read_bytes().decode().split("\0")[:-1]
    assert (folder / "address").read_text() == "10.0.0.7"
    return done.returncode, words[words.index("mads.train") + 1 :], words, (folder / "asked").read_text().splitlines()


def check_quoting():
    """Run a script with hostile words (also for tests/mutants)."""
    with tempfile.TemporaryDirectory() as folder:
        text = slurm_script(cluster(), Job(HOSTILE, "/where/a", "/where", ["/my env/bin/python'3", "$X"]))
        code, overrides, words, _ = run_script(Path(folder) / "fake", text)
        assert (code, overrides) == (0, HOSTILE)
        assert words[words.index("-u") - 2 : words.index("-u")] == ["/my env/bin/python'3", "$X"]
        assert not list(Path(folder).rglob("oops"))


def test_what_a_user_typed_reaches_the_run_byte_for_byte():
    check_quoting()


@pytest.mark.parametrize("number", [0, 1])
def test_a_task_of_an_array_gets_its_overrides_and_a_folder_of_its_own(tmp_path, number):
    folder = "/where/it's a \\ \"place\" $HOME `x` ü'"
    tasks = [["train.seed=1"], ["train.seed=2", "model.rope_theta=3"]]
    job = Job(["train.seed=9", "run_dir=ignored"], folder.replace("\\", "").replace('"', ""), "/where", ["python3"], tasks)
    code, overrides, _, _ = run_script(tmp_path / "fake", slurm_script(cluster(), job), SLURM_ARRAY_TASK_ID=str(number))
    assert code == 0 and overrides[:2] == job.overrides and overrides[2:-1] == tasks[number]
    config = compose(["data=prepared", "data.dir=d", *overrides])
    assert config.run_dir == f"{job.run_dir}/task-{number}" and config.train.seed == number + 1


@pytest.mark.parametrize(
    "value", ["a b", "it's", 'q"x', "back\\slash", "end\\", "x\\'y", "\\\\'", "$HOME", "ü\n x", "a,b", "[1]", "{a:b}", "null", ""]
)
def test_a_folder_with_any_name_is_read_back_from_an_override(value):
    assert compose([f"run_dir={quoted_value(value)}"]).run_dir == value


def test_a_folder_that_looks_like_a_reference_is_refused():
    with pytest.raises(ConfigError, match="reference"):
        quoted_value("runs/${train.seed}")


@pytest.mark.parametrize(
    "code, starts, most, requeued",
    [
        (exits.PREEMPTED, 0, 2, True),
        (exits.PREEMPTED, 1, 2, True),
        (exits.PREEMPTED, 2, 2, False),
        (exits.PREEMPTED, 0, 0, False),
        (exits.DONE, 0, 2, False),
        (exits.FAILED, 0, 2, False),
        (137, 0, 2, False),
    ],
)
def test_only_a_run_that_has_saved_and_wants_to_go_on_is_queued_again(code, starts, most, requeued):
    check_requeue(code, starts, most, requeued)


def check_requeue(code, starts, most, requeued):
    """Run a script whose srun ends with `code` (also for tests/mutants)."""
    text = slurm_script(cluster(f"cluster.requeues={most}"), Job(RUN, "/where/a", "/where", ["python3"]))
    with tempfile.TemporaryDirectory() as folder:
        ended, _, _, asked = run_script(Path(folder) / "fake", text, code, SLURM_RESTART_COUNT=str(starts))
    assert ended == code and ("requeue 7" in asked) == requeued


@pytest.mark.parametrize("name", ['with "quotes"', "back\\slash", "line\nbreak"])
def test_a_folder_that_slurm_cannot_take_is_refused(name):
    with pytest.raises(ConfigError, match="Slurm cannot take"):
        slurm_script(cluster(), Job(RUN, f"/where/{name}", "/where", ["python3"]))
