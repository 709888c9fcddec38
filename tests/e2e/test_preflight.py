"""`mads doctor --preflight` with real processes: what is not the same on every rank is named, with the rank."""

import re
import socket
import subprocess

import pytest
from command_support import MADS, environment

from mads.doctor.facts import Fact, clock_findings, disk_findings, version_findings

COMMAND = [*MADS, "doctor", "--preflight", "model=nano"]


def ranks(tmp_path, *differences, world=2, wait=20, run_dir="run"):
    """One process for each (folder, variables), as a launcher starts them: (exit codes, what each said)."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = []
    for rank, (folder, variables) in enumerate(differences):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = {k: str(v) for k, v in place.items()} | {"GLOO_SOCKET_IFNAME": "lo"} | variables
        processes.append(
            subprocess.Popen(
                [*COMMAND, f"--wait={wait}", f"run_dir={run_dir}"],
                cwd=folder,
                env=environment(**variables),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=180)[0] for process in processes]
    return [process.returncode for process in processes], said


@pytest.mark.full
def test_two_ranks_on_one_machine_find_all_well(tmp_path):
    done = subprocess.run(
        [*COMMAND, "--workers=2", "run_dir=run"],
        cwd=tmp_path,
        env=environment(GLOO_SOCKET_IFNAME="lo"),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ranks: 2 on 1 machines" in done.stdout and "preflight: all is well" in done.stdout
    assert float(re.search(r"clocks: within ([\d.]+) ms", done.stdout)[1]) < 1000
    assert re.search(r"gloo: all-reduce of 4 MiB in \d+ ms", done.stdout)
    assert list((tmp_path / "run").iterdir()) == []  # leaves nothing


def test_another_version_and_another_folder_of_one_rank_are_named(tmp_path):
    """As on a cluster: rank 1's environment has another numpy, and its run_dir is a folder of its own machine."""
    fake = tmp_path / "packages" / "numpy-0.0.1.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    other = {"PYTHONPATH": str(fake.parent)}
    codes, said = ranks(tmp_path, (tmp_path / "a", {}), (tmp_path / "b", other))
    host = socket.gethostname()
    assert codes == [1, 1] and "Traceback" not in "".join(said), said
    wrong = [line for line in said[0].splitlines() if line.startswith("wrong: ")]
    assert len(wrong) == 2 and "preflight: 2 to mend" in said[0], said[0]
    assert re.fullmatch(rf"wrong: numpy: 0\.0\.1 on rank 1 on {host}, [\d.]+ on 1 of 2 ranks", wrong[0])
    assert wrong[1].startswith(f"wrong: run_dir: rank 1 on {host} does not see what rank 0 wrote into {tmp_path}/b/run")
    assert "gloo: all-reduce" in said[0]  # the other checks were made all the same


@pytest.mark.full
@pytest.mark.parametrize("present", [0, 1])
def test_a_rank_that_does_not_come_is_named(tmp_path, present):
    if present == 0:
        codes, said = ranks(tmp_path, (tmp_path, {}), wait=6)
        assert codes == [1] and "wrong: rank 1 of 2 did not come" in said[0], said
    else:  # rank 0 is at another port
        codes, said = ranks(tmp_path, (tmp_path, {}), (tmp_path, {"MASTER_PORT": "1"}), wait=8)
        assert codes == [1, 1] and "rank 1 of 2 did not come" in said[0], said
        assert "cannot reach rank 0 at 127.0.0.1 port 1" in said[1] and "MASTER_PORT" in said[1], said


@pytest.mark.full
def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        codes, said = ranks(tmp_path, (tmp_path, {"MASTER_PORT": port}), world=1, wait=5)
    assert codes == [1] and f"rank 0 cannot listen on port {port}" in said[0], said


def test_what_ranks_say_is_judged():
    def fact(host, free=1 << 40, gpu="", **versions):
        return Fact(host, versions, gpu, free)

    same = [fact("a", torch="2.13"), fact("b", torch="2.13")]
    assert [*version_findings(same), *disk_findings(same, 1 << 30)] == []
    odd = [fact("a", torch="2.13"), fact("b", torch="2.13"), fact("c", torch="2.12"), fact("d")]
    assert list(version_findings(odd)) == [
        "torch: 2.12 on rank 2 on c, 2.13 on 2 of 4 ranks",
        "torch: not installed on rank 3 on d, 2.13 on 2 of 4 ranks",
    ]
    assert list(version_findings([fact("a", gpu="H100"), fact("b")])) == ["GPU: rank 1 on b has none it can use (1 of 2 ranks)"]
    (full,) = disk_findings([fact("a"), fact("b", free=3 << 30)], 2 << 30)
    assert "3.0 GiB are free in run_dir (rank 1 on b), 2 checkpoints take 4.0" in full
    assert list(clock_findings([(0.0, 0.0), (1.5, 0.001), (2.5, 1.0)], odd)) == []
    assert list(clock_findings([(0.0, 0.0), (-2.5, 0.1)], odd)) == [
        "clock: that of rank 1 on b is -2.5 s from rank 0's; set it by a time server"
    ]
