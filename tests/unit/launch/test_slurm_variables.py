"""Slurm's variables of a task, in the words of torch.distributed."""

import pytest

from mads.config.compose import ConfigError
from mads.launch import processes
from mads.launch.slurm import FIRST_PORT, PORTS, first_address, launched_by_slurm, slurm_variables, tasks_per_node

TASK = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "MASTER_ADDR": "10.0.0.7",
}


def test_a_task_of_srun_knows_its_place():
    found = slurm_variables(TASK)
    port = int(found.pop("MASTER_PORT"))
    assert FIRST_PORT <= port < FIRST_PORT + PORTS
    assert found == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "7",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.7",
    }
    ports = {slurm_variables(TASK | {"SLURM_JOB_ID": str(j), "SLURM_STEP_ID": str(s)})["MASTER_PORT"]
             for j in range(100, 120) for s in range(5)}  # fmt: skip
    assert len(ports) == 100  # neighbours do not meet
    assert slurm_variables(TASK | {"MASTER_PORT": "9"})["MASTER_PORT"] == "9"


def test_numbers_of_tasks_are_read_in_slurms_short_form():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1] and tasks_per_node("8") == [8] and tasks_per_node("1,3(x2)") == [1, 3, 3]
    with pytest.raises(ConfigError, match="not what Slurm writes"):
        tasks_per_node("2x3")


@pytest.mark.parametrize("name", ["SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID"])
def test_a_missing_variable_is_named(name):
    with pytest.raises(ConfigError, match=name):
        slurm_variables({k: v for k, v in TASK.items() if k != name})


def test_only_one_of_several_tasks_is_a_launched_process():
    assert launched_by_slurm(TASK)
    assert not launched_by_slurm(TASK | {"RANK": "0"})  # torchrun inside of srun
    assert not launched_by_slurm(TASK | {"SLURM_STEP_NUM_TASKS": "1"})
    batch = {k: v for k, v in TASK.items() if not k.startswith("SLURM_STEP")}
    assert not launched_by_slurm(batch) and not launched_by_slurm({})


def test_without_scontrol_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="set MASTER_ADDR"):
        first_address({"SLURM_STEP_NODELIST": "n[1-2]"})


def test_a_process_takes_its_place_from_slurm(monkeypatch):
    monkeypatch.setattr(processes.os, "environ", dict(TASK))
    where = processes.place()
    assert (where.rank, where.local_rank, where.world_size, where.local_world_size) == (5, 1, 7, 2)
    assert processes.launched()
