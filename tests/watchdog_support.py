"""Ranks with a real gloo group and real watchdogs, whose training is a loop of all-reduces: seconds to start, easy to break."""

import os
import re
import signal
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

LIMIT_S = 3.0
START_S = 40.0


def _loop(rank, world, folder, fault, limits):
    """What a rank does: steps of an all-reduce, with `fault(rank, step, pulse)` before each."""
    with open(f"{folder}/said{rank}", "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import datetime

    import torch
    import torch.distributed as dist
    from topologies import topology

    from mads.train.pulse import Pulse
    from mads.train.watchdog import Watchdog

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=120))
    grid, pulse = topology(dp=world), Pulse()
    watchdog = Watchdog(pulse, *limits, grid, "127.0.0.1", Path(folder))
    Path(f"{folder}/pid{rank}").write_text(str(os.getpid()))
    value, step = torch.ones(4), 0
    try:
        while step < 4000 and not (Path(folder) / "enough").exists():
            with pulse.during("train"):
                fault(rank, step, pulse)
                dist.all_reduce(value)
            step += 1
            pulse.stepped(step)
            Path(f"{folder}/step{rank}").write_text(str(step))
            time.sleep(0.02)
            done = torch.tensor([float((Path(folder) / "enough").exists())])
            dist.all_reduce(done)
            if done.item():
                break
    except Exception as error:
        watchdog.linger()
        print(f"own error: {error}", flush=True)
        watchdog.leave(1, f"{type(error).__name__}: {error}")
        os._exit(1)
    dist.barrier()
    watchdog.leave(0)
    os._exit(0)


class Ranks:
    """Processes of `_loop`, as nobody would start them who looks after them; `end` takes their exit codes and words."""

    def __init__(self, world, fault, limit=LIMIT_S, start_limit=START_S):
        self.folder = tempfile.mkdtemp(prefix="watched-")
        context = get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed"])
        os.environ["OMP_NUM_THREADS"] = "1"
        arguments = [(rank, world, self.folder, fault, (limit, start_limit)) for rank in range(world)]
        self.processes = [context.Process(target=_loop, args=a, daemon=True) for a in arguments]
        for process in self.processes:
            process.start()

    def step(self, rank):
        try:
            return int((Path(self.folder) / f"step{rank}").read_text() or 0)
        except OSError:
            return 0

    def reach(self, step, within=60.0):
        deadline = time.monotonic() + within
        while min(self.step(rank) for rank in range(len(self.processes))) < step:
            assert time.monotonic() < deadline, f"step {step} was not reached: {self.words()}"
            time.sleep(0.02)

    def send(self, rank, number):
        os.kill(self.processes[rank].pid, number)
        return time.monotonic()

    def words(self):
        return {p.name: p.read_text() for p in sorted(Path(self.folder).glob("said*"))}

    def end(self, within, but=()):
        """(exit codes, words) of the ranks, all of which but some have ended within so many seconds."""
        deadline = time.monotonic() + within
        waited = [rank for rank in range(len(self.processes)) if rank not in but]
        for rank in waited:
            self.processes[rank].join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank in waited if self.processes[rank].exitcode is None]
        codes = [process.exitcode for process in self.processes]
        words = [self.words().get(f"said{rank}", "") for rank in range(len(self.processes))]
        assert not late, f"ranks {late} have not ended within {within} s: {words}"
        return codes, words

    def close(self):
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
                process.join(5)


# ---------------------------------------------------------------- faults: top-level, because they are sent to the ranks


def nothing(rank, step, pulse):
    pass


def hang_on_1(rank, step, pulse):
    if rank == 1 and step == 10:
        time.sleep(1000)


def hang_on_0(rank, step, pulse):
    if rank == 0 and step == 10:
        time.sleep(1000)


def raise_on_1(rank, step, pulse):
    if rank == 1 and step == 10:
        raise RuntimeError("the disk is gone")


def slow_on_1(rank, step, pulse):
    """Longer than the limit, without signs of life before the first step, with signs later."""
    if rank == 1 and step == 0:
        time.sleep(1.7 * LIMIT_S)
    if rank == 1 and step == 5:
        for _ in range(10):
            time.sleep(LIMIT_S / 6)
            pulse.beat()


def named_steps(text):
    """The steps in a verdict: the guilty rank's, and of a lost one also that of the others."""
    return [int(step) for step in re.findall(r"step (\d+)", text)]


STOP, KILL = signal.SIGSTOP, signal.SIGKILL
