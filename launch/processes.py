"""Start the workers of a run on this machine, and find out in a worker what the launcher said."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mads.config.compose import ConfigError
from mads.launch import exits
from mads.launch.slurm import launched_by_slurm, slurm_variables, task_of_srun

PARENT = "MADS_PARENT"  # process id of the `mads train` that started a worker
PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # finish the step, save, leave with exits.PREEMPTED
STOP_SIGNALS = (signal.SIGINT, signal.SIGHUP)  # end now
END = signal.SIGHUP  # what ends a worker, in C code too: it has no handler for it
GRACE_S = 5.0  # what a worker gets between that and SIGKILL
POLL_S = 0.1
SPEAK_S = 6.0  # for the other workers' last words, when one is lost, and for a checkpoint that is nearly written
OWN_PORTS = range(15000, 32768)  # below those that Linux draws from


@dataclass(frozen=True)
class Place:
    """What a launcher (deepspeed, torchrun, srun, or mads itself) told this process."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    first_host: str = "127.0.0.1"  # where rank 0 is reached


def place() -> Place | None:
    """This process's place in a launched job, or None if nobody launched it. A task of `srun` gets the variables that
    torch.distributed reads.

    Raises:
        ConfigError: if the launcher's variables are incomplete.
    """
    if launched_by_slurm(os.environ):
        os.environ.update(slurm_variables(os.environ))
    if "RANK" not in os.environ:
        return None
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"RANK is set in the environment, but {', '.join(missing)} is not; start with `mads train`, deepspeed, torchrun or "
            "srun, or unset RANK"
        )
    world = int(os.environ["WORLD_SIZE"])
    rank = int(os.environ["RANK"])
    # The deepspeed launcher sets LOCAL_SIZE, torchrun LOCAL_WORLD_SIZE; a job on one machine needs neither.
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world)))
    return Place(rank, int(os.environ.get("LOCAL_RANK", rank)), world, local_world, os.environ["MASTER_ADDR"])


def launched() -> bool:
    """Whether something other than a user's shell started this process: a launcher, or `mads train` as one of its workers."""
    return "RANK" in os.environ or PARENT in os.environ or task_of_srun(os.environ)


def become_single_process() -> Place:
    """Make this process a job of one."""
    os.environ.update(_place_variables(0, 1, free_port()))
    return place()


def strip_launcher_arguments(arguments: Sequence[str]) -> list[str]:
    """Without the --local_rank=N that the deepspeed launcher appends."""
    return [a for a in arguments if not a.startswith("--local_rank")]


def prepare_worker(has_gpu: bool) -> None:
    """Set up this worker process, before deepspeed is imported: no guess (and warning) about the accelerator, and no life of
    its own after the `mads train` that started it: an orphan would go on writing into the run folder."""
    if not has_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    parent = os.environ.get(PARENT)
    if parent is not None and sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(parent):  # it died before the call
            os._exit(1)


def first_process(where: Place) -> tuple[str, int, bool]:
    """(address and port of rank 0, whether this process has to open the port): torchrun has opened it itself."""
    opened = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), where.rank == 0 and not opened


def run_workers(workers: int, overrides: Sequence[str], program: Sequence[str] = ("mads.train",)) -> int:
    """Start `workers` processes of `program` (a module and its first arguments) on this machine and wait for all.

    The first worker that fails ends the others, and so do SIGINT and SIGHUP to this process: the workers get SIGHUP, and SIGKILL
    after a few seconds. SIGTERM and SIGUSR1 go on to the workers, which finish their step and save; a second one ends them. The
    arguments go as a list, never through a shell.

    Returns:
        0, the exit code of the first worker that failed (mads.launch.exits), or 128 + the number of the signal that ended it or
        this process.
    """
    environment = dict(os.environ)
    # On a CPU each worker gets its share of the cores: with more threads than cores OpenMP spins, a step takes many times longer.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    environment[PARENT] = str(os.getpid())
    port = free_port()
    received: list[int] = []
    # Handlers only take a note, so that no worker is started and then forgotten.
    numbers = (*STOP_SIGNALS, *PREEMPTION_SIGNALS)
    previous = {number: signal.signal(number, lambda n, frame: received.append(n)) for number in numbers}
    # Inherited by the workers, who let them through when their handlers stand: none dies of one before.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, PREEMPTION_SIGNALS)
    processes: list[subprocess.Popen] = []
    try:
        for rank in range(workers):
            # In a process group of its own: Ctrl-C in a terminal goes to this process alone, which ends the workers in order.
            command = [sys.executable, "-u", "-m", *program, *overrides]
            variables = environment | _place_variables(rank, workers, port)
            processes.append(subprocess.Popen(command, env=variables, process_group=0))
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return _wait(processes, received)
    finally:
        _end(processes)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen], received: Sequence[int]) -> int:
    told = 0  # signals of `received` that were looked at
    while True:
        codes = [process.poll() for process in processes]
        # A killed worker makes its peers fail within milliseconds: the signal is the cause, their exit codes are not.
        failed = sorted((rank for rank, code in enumerate(codes) if code), key=lambda rank: codes[rank] > 0)
        if failed:
            rank, code = failed[0], codes[failed[0]]
            if code < 0 or code == exits.HUNG:
                _let_speak(processes, code)
            ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            if code not in (exits.FAILED, exits.BAD_INPUT, exits.PREEMPTED, exits.HUNG):  # with these it has said why
                print(f"mads train: worker {rank} {ending}; ending the others", file=sys.stderr, flush=True)
            return 128 - code if code < 0 else code
        if all(code == 0 for code in codes):
            return exits.DONE
        if len(received) > told:
            number, told = received[told], told + 1
            name = signal.Signals(number).name
            if number in STOP_SIGNALS or told > 1:
                print(f"mads train: {name} received, ending {len(processes)} workers", file=sys.stderr, flush=True)
                return 128 + number
            print(
                f"mads train: {name} received; {len(processes)} workers finish a step and save; a second signal ends them",
                file=sys.stderr,
                flush=True,
            )
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)
        time.sleep(POLL_S)


def _let_speak(processes: Sequence[subprocess.Popen], code: int) -> None:
    """A worker is lost: the watchdogs of the others say at which step, and end them. What has not ended after a verdict of theirs
    stands still, and would not hear a request either."""
    deadline = time.monotonic() + SPEAK_S
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(POLL_S)
    for process in processes:
        if code == exits.HUNG and process.poll() is None:
            process.kill()


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """End what still runs: ask, wait, then kill."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(END)
    deadline = time.monotonic() + GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _place_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torch.distributed reads, for a job on this machine alone; LOCAL_SIZE is DeepSpeed's, which without it starts numactl
    in every backward pass of ZeRO 3 on a CPU, to count devices."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def cpu_threads(where: Place) -> int:
    """Threads of a worker without a GPU: OMP_NUM_THREADS if it is set, as everywhere; else its share of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else max(1, (os.cpu_count() or 1) // where.local_world_size)


def free_port() -> int:
    """A port that nobody uses and, where possible, none that the system gives to programs that ask for any: between this call
    and the moment when rank 0 listens, seconds later, every connection of this machine draws one of those."""
    ports = random.SystemRandom().sample(OWN_PORTS, 20)
    for port in (*ports, 0):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return s.getsockname()[1]
    raise ConfigError("no free port on 127.0.0.1")
