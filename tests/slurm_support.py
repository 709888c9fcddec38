"""A real Slurm of two nodes on this machine, from the packages slurmctld, slurmd, slurm-client and munge."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
FOLDERS = "/usr/sbin:/sbin"  # where Debian keeps those of the first three; a user's PATH need not have them
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
SlurmctldDebug=info
SlurmdDebug=info
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
KillWait=10
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=4
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=4
PartitionName=both Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no Slurm here; None: there can be."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:{FOLDERS}") is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "slurmd starts jobs as their users: the tests must be root, as in a container"


class Slurm:
    """The cluster's daemons, as children of this process. `folder` has their logs; short, for it holds a socket."""

    def __init__(self, folder: Path):
        self.folder, self.daemons = folder, []
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{FOLDERS}"}

    def __enter__(self) -> Slurm:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        folder = self.folder
        for name in ("state", "munge"):
            (folder / name).mkdir()
        host = socket.gethostname().split(".")[0]
        controller, first, second = _free_ports(3)
        text = CONFIGURATION.format(
            host=host, user=getpass.getuser(), folder=folder, controller=controller, first=first, second=second
        )
        (folder / "slurm.conf").write_text(text)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        places = {"socket": folder / "munge.socket", "key-file": key} | {
            f"{kind}-file": folder / "munge" / kind for kind in ("pid", "log", "seed")
        }
        self._daemon("munged", "--foreground", "--force", "--num-threads=2", *(f"--{k}={v}" for k, v in places.items()))
        _wait(lambda: (folder / "munge.socket").exists(), "munged has no socket", self)
        self._daemon("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node)
        _wait(lambda: self.ask("sinfo", "--noheader", "--format=%D %t").strip() == "2 idle", "the nodes are not idle", self)

    def _daemon(self, *words: str) -> None:
        with open(self.folder / f"{words[0]}-{len(self.daemons)}.out", "wb") as out:
            self.daemons.append(
                subprocess.Popen(words, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
            )

    def ask(self, *words: str) -> str:
        """What a command of Slurm says; "" if it fails."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    def field(self, job: str, name: str) -> str:
        """Of `scontrol show job`: "" if it is not there."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")

    def logs(self) -> str:
        """What the daemons said last."""
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"-- {f.name}\n{f.read_text(errors='replace')[-1500:]}" for f in files)

    def __exit__(self, *_) -> None:
        for job in self.ask("squeue", "--noheader", "--format=%A").split():
            self.ask("scancel", "--signal=KILL", "--full", job)
            self.ask("scancel", job)
        deadline = time.monotonic() + 30
        while self.ask("squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _wait(condition, what: str, slurm: Slurm, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}\n{slurm.logs()}"
        time.sleep(0.1)
