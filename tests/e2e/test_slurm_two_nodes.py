"""`mads submit` on a real Slurm of two nodes: preempted jobs queue themselves again and go on, bit for bit."""

import importlib.util
import json
import subprocess
import tempfile
from pathlib import Path

import pytest
from command_support import MADS, environment, settings, undisturbed, wait_until
from run_support import OVERRIDES, curve
from slurm_support import Slurm, missing
from test_processes_end import trained_steps

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no Slurm here: {missing()}")

RUN = ["train.steps=30", "selection.interval=10", "train.eval_interval=10", "train.loader_workers=1"]
CLUSTER = ["cluster=cpu", "cluster.nodes=2", "cluster.cpus_per_task=1", "cluster.setup=['export GLOO_SOCKET_IFNAME=lo']"]


@pytest.fixture(scope="module")
def slurm():
    # Not in pytest's folders: the path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Slurm(Path(folder)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    return undisturbed(prepared, tmp_path_factory.mktemp("whole"), *RUN)


def submit(slurm, cwd, *arguments, code=0):
    """The numbers of the jobs."""
    done = subprocess.run(
        [*MADS, "submit", *map(str, arguments)],
        cwd=cwd,
        env=environment() | slurm.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("job: ")]


def output(folder):
    return "\n".join(p.read_text() for p in sorted((folder / "slurm").glob("*.log")))


def wait_for(slurm, job, folder, states, timeout=240):
    def reached():
        state = slurm.field(job, "JobState")
        assert state not in ("FAILED", "NODE_FAIL", "TIMEOUT", "CANCELLED") or state in states, said()
        return state in states

    def said():
        return f"job {job} is {slurm.field(job, 'JobState')} {slurm.field(job, 'Reason')}\n{output(folder)}\n{slurm.logs()}"

    try:
        wait_until(reached, f"job {job} does not become {states}", timeout)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{said()}") from None


def quoted(path):
    return "'" + str(path).replace("'", "\\'") + "'"


ASKED = [
    ["--signal=USR1"],  # as Slurm does before the time limit
    pytest.param(["--signal=TERM"], marks=pytest.mark.full),  # as where a cluster preempts
    pytest.param(["--full", "--signal=USR1"], marks=pytest.mark.full),  # the script and srun too
]


@pytest.mark.parametrize("asked", ASKED, ids=" ".join)
def test_a_preempted_job_queues_itself_again_and_goes_on_bit_for_bit(slurm, prepared, tmp_path, whole, asked):
    folder = tmp_path / "it's 5% of ü"  # what Slurm, bash and Hydra could each misread
    arguments = settings(prepared, quoted(folder), *RUN, "logging.console=true")
    (job,) = submit(slurm, tmp_path, *CLUSTER, *arguments)
    wait_until(lambda: trained_steps(folder) >= 4, "no steps", 120)
    slurm.ask("scancel", *asked, job)
    wait_until(lambda: slurm.field(job, "Restarts") == "1", f"not queued again\n{output(folder)}", 120)
    reached = trained_steps(folder)
    assert 4 <= reached < 30, "signalled too late to see anything"
    wait_for(slurm, job, folder, ("COMPLETED",))
    said = output(folder)
    assert f"start 1 of job {job} has ended; it is queued again" in said
    assert f"resuming step-{reached:08d}" in said and "Traceback" not in said
    assert said.count("resuming step-") == 1 and slurm.field(job, "ExitCode") == "0:0"
    assert curve(folder) == whole


@pytest.mark.full
def test_the_warning_before_a_time_limit_does_the_same(slurm, prepared, tmp_path):
    folder = tmp_path / "run"
    limit = ["cluster.time_limit=0:02:00", "cluster.signal_s=75", "cluster.requeues=1"]
    (job,) = submit(slurm, tmp_path, *CLUSTER, *limit, *settings(prepared, folder, *RUN[1:], "train.steps=100000"))
    wait_until(lambda: slurm.field(job, "Restarts") == "1", f"not queued again\n{output(folder)}", 180)
    reached = trained_steps(folder)
    assert reached > 0 and (folder / "checkpoints" / f"step-{reached:08d}").is_dir()
    # Told again, it has been queued again as often as it may.
    wait_until(lambda: trained_steps(folder) > reached, f"does not go on\n{output(folder)}", 120)
    slurm.ask("scancel", "--signal=USR1", job)
    wait_for(slurm, job, folder, ("FAILED",))
    assert slurm.field(job, "ExitCode") == "85:0" and "which is cluster.requeues" in output(folder)


@pytest.mark.full
def test_the_tasks_of_an_array_are_runs_of_their_own_and_a_chain_goes_through_them_again(slurm, prepared, tmp_path):
    folder = tmp_path / "runs"
    tasks = "cluster.array=['train.seed=1','train.seed=2 train.steps=8']"
    jobs = submit(slurm, tmp_path, "cluster=cpu", tasks, "cluster.chain=2", *settings(prepared, folder, "selection=random"))
    wait_until(lambda: not slurm.ask("squeue", "--noheader"), f"not done\n{output(folder)}", 240)
    logs = {p.name: p.read_text() for p in (folder / "slurm").glob("*.log")}
    assert set(logs) == {f"mads-{job}_{task}.log" for job in jobs for task in (0, 1)}
    assert [trained_steps(folder / f"task-{task}") for task in (0, 1)] == [12, 8]
    assert [f"seed: {seed}" in (folder / f"task-{seed - 1}" / "config.yaml").read_text() for seed in (1, 2)] == [True, True]
    assert "Traceback" not in "".join(logs.values())


@pytest.mark.full
def test_a_run_that_fails_is_not_queued_again_and_the_job_has_its_exit_code(slurm, prepared, tmp_path):
    folder = tmp_path / "run"
    (job,) = submit(slurm, tmp_path, *CLUSTER, *settings(tmp_path / "nothing", folder))
    wait_for(slurm, job, folder, ("FAILED",))
    assert slurm.field(job, "ExitCode") == "2:0" and slurm.field(job, "Restarts") == "0"
    assert "mads train: " in output(folder) and "nothing" in output(folder)


@pytest.mark.full
def test_the_ranks_of_a_step_find_their_machines_well(slurm, tmp_path):
    done = subprocess.run(
        ["srun", "-N2", "-n2", *MADS, "doctor", "--preflight", "model=nano", "run_dir=run"],
        cwd=tmp_path,
        env=environment(GLOO_SOCKET_IFNAME="lo") | slurm.environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ranks: 2 on" in done.stdout and "preflight: all is well" in done.stdout


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="hydra-submitit-launcher is not installed")
def test_the_cells_of_a_comparison_are_jobs_of_slurm(slurm, prepared, tmp_path):
    """hydra/launcher=submitit_slurm, which is a package of others: what is ours is that a cell can be sent to a node."""
    overrides = ["data=prepared" if o == "data=jsonl" else o for o in OVERRIDES if not o.startswith("data.paths")]
    (tmp_path / "two.yaml").write_text(
        "defaults: [comparison_schema, _self_]\nstrategies: {random: [selection=random], again: [selection=random]}\n"
        f"seeds: [0]\ncooldown: 0\noverrides: {json.dumps(overrides)}\n"
    )
    submitted = lambda: (slurm.folder / "slurmctld.log").read_text().count("_slurm_rpc_submit_batch_job: JobId=")
    before = submitted()
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=both", "hydra.launcher.cpus_per_task=1"]
    done = subprocess.run(
        [*MADS, "compare", "--folder", tmp_path / "F", f"compare={tmp_path}/two.yaml", f"data.dir={prepared}", *launcher],
        cwd=tmp_path,
        env=environment() | slurm.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr + slurm.logs()
    results = [json.loads((tmp_path / "F" / "results" / f"{name}-0.json").read_text()) for name in ("random", "again")]
    assert results[0]["points"][0]["heldout"] == results[1]["points"][0]["heldout"]
    assert (tmp_path / "F" / "compare.html").is_file()
    assert submitted() > before  # not run here by mistake
