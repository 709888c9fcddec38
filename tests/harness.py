"""Distributed tests on one machine: persistent pools of gloo worker processes, one pool per world size.

    from harness import run_ranks

    def check_sum(x):                      # top-level and importable; runs on every rank
        ...
        return value

    def test_sum():
        assert run_ranks(2, check_sum, 1.0) == [3.0, 3.0]   # the ranks' return values, in rank order

A worker has a gloo default process group over a file store (no ports to collide), one torch thread, RANK / LOCAL_RANK /
WORLD_SIZE in its environment, and torch's generator seeded anew for every call. Workers live until the session ends and block
on a pipe between calls. After a failure, a crash or a time-out the whole pool is killed, and the next call starts a new one.

Arguments and return values are pickled, so they must be plain values or tensors.
"""

from __future__ import annotations

import atexit
import datetime
import faulthandler
import importlib
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import connection, get_context
from typing import Any

# Imported once for all workers. The last two are what the first optimizer and the first engine would import in each: seconds.
PRELOADED = ["torch", "deepspeed", "torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer"]
START_TIMEOUT_S = 180.0  # the first pool imports torch and deepspeed once
# Each group has a thread that gloo wakes a hundred times a second for nothing; with hundreds of groups (every engine makes some,
# and nobody ends them) four ranks spend half of their time on it. A pool with more is replaced after the call.
MOST_GROUPS = 60
GRACE_S = 2.0  # after the first failure, for the other ranks to report theirs


class RankFailure(AssertionError):
    """A rank raised, died, or did not finish in time.

    rank: the first such rank (None when several hang)
    answers: rank -> return value, of the ranks that finished
    """

    def __init__(self, message: str, rank: int | None = None, answers: dict[int, Any] | None = None):
        super().__init__(message)
        self.rank = rank
        self.answers = answers or {}


# ---------------------------------------------------------------- the worker's side


def _start_worker(rank: int, world: int, folder: str) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        OMP_NUM_THREADS="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",  # DeepSpeed reads them even when the group exists already
    )
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name that does not resolve must not matter
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of torch against DeepSpeed's calls, as in pyproject.toml
    warnings.simplefilter("ignore", DeprecationWarning)
    import deepspeed

    # Used for inference only, and compiling it takes minutes on a machine without the cache.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    store = dist.FileStore(os.path.join(folder, "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=1800))


def _resolve(module: str, qualname: str) -> Callable:
    target: Any = importlib.import_module(module)
    for name in qualname.split("."):
        target = getattr(target, name)
    return target


def _call(request: tuple) -> Any:
    import torch

    path, module, qualname, raw_args = request
    sys.path.extend(entry for entry in path if entry not in sys.path)
    torch.manual_seed(0)
    return _resolve(module, qualname)(*pickle.loads(raw_args))


def _groups() -> int:
    """Process groups of this worker."""
    from torch.distributed import distributed_c10d

    return len(distributed_c10d._world.pg_map)


def _worker(rank: int, world: int, folder: str, pipe: connection.Connection) -> None:
    """Serve calls until the parent says stop or is gone (end of file)."""
    with open(os.path.join(folder, f"stack{rank}"), "w") as stack:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGUSR1))  # a loader may have started the fork server
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
        try:
            _start_worker(rank, world, folder)
            pipe.send_bytes(pickle.dumps(("ok", None)))
        except BaseException:
            pipe.send_bytes(pickle.dumps(("error", traceback.format_exc())))
            return
        while True:
            try:
                request = pickle.loads(pipe.recv_bytes())
            except EOFError:
                break
            if request is None:
                break
            try:
                answer = pickle.dumps(("ok", _call(request), _groups()))
            except BaseException:  # pytest's own failures derive from BaseException
                answer = pickle.dumps(("error", traceback.format_exc()))
            pipe.send_bytes(answer)
    import torch.distributed as dist

    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # skips the destructors of native libraries, which sometimes abort


# ---------------------------------------------------------------- the test's side


class _Pool:
    def __init__(self, world: int):
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        os.environ["OMP_NUM_THREADS"] = "1"
        self.world = world
        self.folder = tempfile.mkdtemp(prefix="ranks-")
        self.pipes, self.processes, self.groups = [], [], 0
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(rank, world, self.folder, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        self.collect("starting the workers", START_TIMEOUT_S)

    def call(self, fn: Callable, args: tuple, timeout: float) -> list[Any]:
        __tracebackhide__ = True
        request = pickle.dumps((list(sys.path), fn.__module__, fn.__qualname__, pickle.dumps(args)))
        for rank, pipe in enumerate(self.pipes):
            try:
                pipe.send_bytes(request)
            except OSError as error:  # died between two calls
                message = f"rank {rank} of {self.world} is gone before {fn.__qualname__}: {self._exit(rank)}"
                raise RankFailure(message, rank) from error
        return self.collect(fn.__qualname__, timeout)

    def collect(self, what: str, timeout: float) -> list[Any]:
        """One answer per rank, in rank order; raises for the first rank that failed, or whose process ended: others may be
        quicker to say that they lost it."""
        __tracebackhide__ = True
        answers: dict[int, Any] = {}
        failure: RankFailure | None = None
        ended = False
        deadline = time.monotonic() + timeout
        while len(answers) < self.world:
            waiting = {self.pipes[r]: r for r in range(self.world) if r not in answers}
            ready = connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                rank = waiting[pipe]
                try:
                    status, value, *groups = pickle.loads(pipe.recv_bytes())
                    self.groups = max(self.groups, *groups, 0)
                except (EOFError, OSError):
                    status, value = "end", self._exit(rank)
                answers[rank] = value
                if status in ("error", "end") and (failure is None or (status == "end" and not ended)):
                    failure, ended = RankFailure(f"rank {rank} of {self.world} failed in {what}:\n{value}", rank), status == "end"
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        if failure is not None:
            raise failure
        if len(answers) < self.world:
            raise self._hung(what, timeout, answers)
        return [answers[r] for r in range(self.world)]

    def _exit(self, rank: int) -> str:
        self.processes[rank].join(GRACE_S)
        return f"the process ended with exit code {self.processes[rank].exitcode}"

    def _hung(self, what: str, timeout: float, answers: dict[int, Any]) -> RankFailure:
        ranks = [r for r in range(self.world) if r not in answers]
        for rank in ranks:
            os.kill(self.processes[rank].pid, signal.SIGUSR1)  # faulthandler writes where the rank is
        time.sleep(0.3)
        stacks = []
        for rank in ranks:
            with open(os.path.join(self.folder, f"stack{rank}")) as f:
                stacks.append(f"rank {rank}:\n{f.read()}")
        message = f"ranks {ranks} of {self.world} did not finish {what} within {timeout:g} s\n" + "\n".join(stacks)
        return RankFailure(message, ranks[0] if len(ranks) == 1 else None, answers)

    def close(self, kill: bool = False) -> None:
        for pipe in self.pipes:
            try:
                if not kill:
                    pipe.send_bytes(pickle.dumps(None))
            except OSError:
                pass  # already gone
        for process in self.processes:
            process.join(0 if kill else GRACE_S)
            if process.exitcode is None:
                process.kill()
                process.join(GRACE_S)
        for pipe in self.pipes:
            pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)


_pools: dict[int, _Pool] = {}


def run_ranks(world: int, fn: Callable, *args: Any, timeout: float = 60.0) -> list[Any]:
    """Run fn(*args) on `world` ranks; returns their return values in rank order.

    Raises:
        RankFailure: with the first failing rank's number and traceback; after `timeout` seconds, with the ranks that hang and
            their stacks. The pool is gone then and the next call starts another.
    """
    __tracebackhide__ = True  # pytest shows the rank's traceback, not ours
    if world not in _pools:
        _pools[world] = _Pool(world)
    try:
        answers = _pools[world].call(fn, args, timeout)
        if _pools[world].groups > MOST_GROUPS:
            _pools.pop(world).close()
        return answers
    except BaseException:  # also an interrupt: answers of this call must not be read by the next
        _pools.pop(world).close(kill=True)
        raise


def pool_pids(world: int) -> list[int]:
    """Process ids of the pool of a world size; empty when there is none."""
    return [p.pid for p in _pools[world].processes] if world in _pools else []


def close_pools() -> None:
    """End all workers; called at the end of the session."""
    while _pools:
        _pools.popitem()[1].close()


atexit.register(close_pools)
