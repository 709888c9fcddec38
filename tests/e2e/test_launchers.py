"""launch/deepspeed.sh and launch/torchrun.sh on one node and on two (of one machine), against `mads train --workers 2`."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from command_support import REPOSITORY, alive, children, environment, settings, undisturbed, wait_until
from run_support import curve
from test_processes_end import trained_steps

pytestmark = pytest.mark.full
RUN = ["train.steps=12", "selection.interval=5", "train.eval_interval=6"]


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    return undisturbed(prepared, tmp_path_factory.mktemp("whole"), *RUN)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_nodes(kind, nodes, tmp_path, overrides):
    """The same command on each node, as its page says; [(process, log)]."""
    common = {"PYTHON": sys.executable, "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    common["PROCESSES"] = str(2 // nodes)
    started = []
    for node in range(nodes):
        own = {}
        if nodes == 2:
            own["MASTER_ADDR"] = "127.0.0.1"
            if kind == "deepspeed":
                (tmp_path / "hosts").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
                own |= {"HOSTFILE": str(tmp_path / "hosts"), "NODE_RANK": str(node)}
            else:
                own["NODES"] = "2"
        log = tmp_path / f"log-{node}"
        with open(log, "wb") as out:
            command = ["bash", str(REPOSITORY / "launch" / f"{kind}.sh"), *map(str, overrides)]
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment(**common, **own), stdout=out, stderr=subprocess.STDOUT
            )
        started.append((process, log))
    return started


def workers(pid):
    """Below a launcher: the processes of mads.train."""
    below = [p for child in children(pid) for p in (child, *workers(child))] if alive(pid) else []
    return [p for p in below if "mads.train" in command_line(p) and "launch" not in command_line(p)]


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as f:
            return f.read().replace("\0", " ")
    except OSError:
        return ""


@pytest.mark.parametrize("kind, nodes", [("deepspeed", 1), ("deepspeed", 2), ("torchrun", 1), ("torchrun", 2)])
def test_a_run_is_the_same_whoever_starts_it(prepared, tmp_path, whole, kind, nodes):
    started = start_nodes(kind, nodes, tmp_path, settings(prepared, tmp_path / "a run", *RUN))
    try:
        codes = [process.wait(300) for process, _ in started]
    finally:
        for process, _ in started:
            process.kill()
    said = "\n".join(log.read_text() for _, log in started)
    assert codes == [0] * nodes, said
    assert curve(tmp_path / "a run") == whole


# Of the launcher, by whom the signal reaches: docs/faults.md has this table.
CODES = [("deepspeed", "rank", 85), ("deepspeed", "launcher", 1), ("torchrun", "rank", 1), ("torchrun", "launcher", 1)]


@pytest.mark.parametrize("kind, victim, expected", CODES)
def test_a_signal_leaves_a_checkpoint_and_the_launchers_own_exit_code(prepared, tmp_path, kind, victim, expected):
    run_dir = tmp_path / "run"
    ((process, log),) = start_nodes(kind, 1, tmp_path, settings(prepared, run_dir, *RUN, "train.steps=100000"))
    ranks = []
    try:
        wait_until(lambda: process.poll() is not None or trained_steps(run_dir) >= 3, "no steps", 120)
        ranks = workers(process.pid)
        assert len(ranks) == 2, (ranks, log.read_text())
        os.kill(process.pid if victim == "launcher" else ranks[1], signal.SIGTERM)
        code = process.wait(120)
        wait_until(lambda: not any(map(alive, ranks)), "ranks outlive their launcher", 60)
    finally:
        process.kill()
        for rank in filter(alive, ranks):
            os.kill(rank, signal.SIGKILL)
    saved = [int(p.name.split("-")[1]) for p in (run_dir / "checkpoints").glob("step-*")]
    assert (code, saved) == (expected, [trained_steps(run_dir)]), log.read_text()
