"""conf/cluster: what is refused before anything is written, and what reaches sbatch."""

import subprocess

import pytest

from mads.cli import main
from mads.config.cluster import compose_cluster, split_overrides, time_limit_s, validate_cluster
from mads.config.compose import ConfigError
from mads.launch import submit as submit_module

RUN = ["data=prepared", "data.dir=d", "selection=random", "cluster=cpu"]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["cluster.nodes=0"], ["cluster.nodes=0"]),
        (["cluster.nodes=two"], ["two", "cluster.nodes"]),
        (["cluster.node=2"], ["cluster.node", "mads submit --cfg job"]),
        (["cluster.tasks_per_node=4"], ["gpus_per_node=8", "tasks_per_node=4"]),
        (["cluster.time_limit=86400"], ["86400", "'24:00:00'"]),
        (["cluster.time_limit=24:00"], ["24:00 must be hours:minutes:seconds"]),
        (["cluster.time_limit=tomorrow"], ["tomorrow"]),
        (["cluster.time_limit=0:02:00"], ["120 s", "signal_s=120"]),
        (["cluster.signal_s=0"], ["signal_s=0"]),
        (["cluster.dependency=singleton"], ["afterany, afternotok"]),
        (["cluster.dependency=afternotok"], ["cluster.chain"]),
        (["cluster.array=['train.seed=1','train.seed=1']"], ["twice"]),
        (["cluster.array=['run_dir=x']"], ["without run_dir"]),
        (["cluster.array=['cluster.nodes=2']"], ["overrides of a run"]),
        (["cluster.array=['a=\"']"], ["cluster.array[0]", "quotation"]),
        (["cluster.sbatch_options.time=3"], ["cluster.time_limit"]),
        (["cluster.sbatch_options.output=x"], ["leave it out"]),
        (["cluster.sbatch_options.comment='a\"b'"], ["double quote"]),
        (["cluster.job_name='a b'"], ["cluster.job_name"]),
        (["cluster.job_name=a/b"], ["name of the log"]),
        (["cluster.setup=['#SBATCH --nodes=3']"], ["cluster.sbatch_options"]),
    ],
)
def test_what_cannot_work_is_refused_by_name(overrides, words):
    check_refused(overrides, words)


def check_refused(overrides, words):
    """Each of the words is in what is said (also for tests/mutants)."""
    with pytest.raises(ConfigError) as error:
        validate_cluster(compose_cluster(overrides))
    assert all(word in str(error.value) for word in words), error.value


def test_times_are_read_as_slurm_reads_them():
    times = {"24:00:00": 86400, "1-0": 86400, "1-02:30": 95400, "0:03:00": 180, "100:00:00": 360000}
    assert {text: time_limit_s(text) for text in times} == times
    assert [time_limit_s(text) for text in ("90", "24:00", "1:2:3", "", "1-", "x")] == [None] * 6


def test_a_time_without_quotes_in_a_file_is_told_apart_from_seconds(tmp_path):
    """YAML 1.1 reads 24:00:00 as a number in base 60: Slurm would take 86400 for minutes, 60 days."""
    (tmp_path / "cluster").mkdir()
    for name, value in (("bare", "24:00:00"), ("quoted", "'24:00:00'")):
        (tmp_path / "cluster" / f"{name}.yaml").write_text(f"tasks_per_node: 1\ngpus_per_node: 0\ntime_limit: {value}\n")
    path = f"hydra.searchpath=[file://{tmp_path}]"
    good = compose_cluster([path, "cluster=quoted"])
    validate_cluster(good)
    assert good.time_limit == "24:00:00"
    with pytest.raises(ConfigError, match="Without quotes YAML reads 24:00:00 as 86400"):
        validate_cluster(compose_cluster([path, "cluster=bare"]))


def test_overrides_go_to_the_cluster_or_to_the_run():
    path = "hydra.searchpath=[file://x]"
    own, run = split_overrides(["cluster=cpu", "+cluster.x=1", "clusters=2", path, "train.steps=3"])
    assert (own, run) == (["cluster=cpu", "+cluster.x=1", path], ["clusters=2", path, "train.steps=3"])


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A folder to submit from, and a list that takes the words of each sbatch."""
    calls = []

    def called(words, **_):
        calls.append(words)
        refused = "--dependency=afterany:101" in words
        return subprocess.CompletedProcess(
            words, int(refused), f"{99 + len(calls)};far\n", "no such partition" if refused else ""
        )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submit_module.shutil, "which", lambda name: name)
    monkeypatch.setattr(submit_module.subprocess, "run", called)
    return calls


def test_a_chain_waits_job_by_job_and_says_where_it_broke_off(sbatch, tmp_path, capsys):
    assert main(["submit", *RUN, "run_dir=r", "cluster.chain=4"]) == 1
    script = str(tmp_path / "r" / "slurm" / "job.sh")
    said = capsys.readouterr()
    assert sbatch[0] == ["sbatch", "--parsable", script]
    assert sbatch[1] == ["sbatch", "--parsable", "--dependency=afterany:100", "--kill-on-invalid-dep=yes", script]
    assert len(sbatch) == 3 and "job: 101 after job 100" in said.out
    assert "no such partition" in said.err and "2 of 4 jobs are submitted" in said.err


@pytest.mark.parametrize(
    "wrong, word",
    [
        (["cluster.nodes=3"], "cannot be cut into 3 ranks"),  # 32 rows a step, 8 a pass
        (["train.step=3"], "train.step"),
        (["cluster.array=['train.seed=1','train.sed=2']"], "with train.sed=2"),
        (["cluster.time_limit=3"], "cluster.time_limit=3"),
        (["data=prepared", "model.num_layers=0"], "model.num_layers=0"),
    ],
)
def test_nothing_is_written_or_submitted_for_what_cannot_run(sbatch, tmp_path, capsys, wrong, word):
    assert main(["submit", *RUN, *wrong]) == 2
    assert word in capsys.readouterr().err and not list(tmp_path.iterdir()) and sbatch == []


def test_a_dry_run_prints_the_script_and_the_commands_only(sbatch, tmp_path, capsys):
    assert main(["submit", "--dry-run", *RUN, "run_dir='a b'", "cluster.chain=2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("#!/usr/bin/env bash") and "--dependency=afterany:JOB_1" in said and "'run_dir='" in said
    assert sbatch == [] and not list(tmp_path.iterdir())


def test_without_slurm_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", *RUN]) == 2
    assert "sbatch is not on this machine" in capsys.readouterr().err and not list(tmp_path.iterdir())
