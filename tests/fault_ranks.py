"""The ranks of a real run, as processes that can be killed at any place of the program, and faults that are put into them.

`python fault_ranks.py` imports torch, deepspeed and mads once, reads one JSON object a line (a *life* of a run), forks its ranks,
of which each runs `mads.train.worker.main` as any launcher's worker does, plays the launcher, and writes one JSON object a line:
the exit codes in rank order, negative for a signal. The product holds no code for this: what is done to a rank is done by
replacing functions in its process.

A life:
    world, overrides    ranks and the command line
    log                 file for what the ranks print
    faults              list of dicts, each with "kind" (FAULTS), "rank" and what the kind takes
    linger              seconds that the other ranks live on after one has died, until the launcher ends them
    trace               None, or a folder for counts of calls (`Places`), one file a rank
    limit_s             the longest; ranks that still run are killed then
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

KILLED = -signal.SIGKILL
GRACE_S = 5.0
# Calls of C code that change or read files, by which a kill can fall between any two of them.
FILE_CALLS = frozenset(
    "open read write writelines flush fsync close truncate replace rename unlink mkdir rmdir scandir stat lstat listdir".split()
)
# Place -> the function that it is, and how to tell from a call at which step it is: of the trainer, or of its arguments.
PLACES = {
    "start": ("mads.train.loop:Trainer.__init__", None),
    "step": ("mads.train.loop:Trainer._train_one_step", "trainer"),
    "evaluation": ("mads.train.loop:Trainer._evaluate", "trainer"),
    "selection": ("mads.train.loop:Trainer._select", "trainer"),
    "save": ("mads.train.loop:Trainer._save", "trainer"),
    "write": ("mads.checkpoint.writing:Writer.run", "folder"),
    "log": ("mads.logging.metrics:MetricsWriter._append", "line"),
    "end": ("mads.train.journal:Journal.close", None),
    "reward": (None, "trainer"),  # the rewarder of the run's parts
}


def replace(target: str, made) -> None:
    """Put made(original) in the place of module:attribute.attribute."""
    module, attributes = target.split(":")
    *path, last = attributes.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(module))
    setattr(owner, last, made(getattr(owner, last)))


class Places:
    """Enters every place of PLACES through `around(place, step, call)`."""

    def __init__(self, around):
        self._around, self._trainer = around, None
        for place, (target, step_from) in PLACES.items():
            if target is not None:
                replace(target, functools.partial(self._wrapped, place, step_from))
        replace("mads.train.loop:build_parts", self._with_rewarder)

    def _wrapped(self, place, step_from, original):
        @functools.wraps(original)
        def call(*arguments, **named):
            if place == "start":
                self._trainer = arguments[0]
            return self._around(place, self._step(step_from, arguments), lambda: original(*arguments, **named))

        return call

    def _with_rewarder(self, original):
        def build(*arguments, **named):
            parts = original(*arguments, **named)
            if parts.rewarder is None:
                return parts
            return dataclasses.replace(parts, rewarder=self._wrapped("reward", "trainer", parts.rewarder))

        return build

    def _step(self, step_from, arguments) -> int:
        if step_from == "trainer":
            return self._trainer.step
        if step_from == "folder":
            return int(arguments[0].folder.name.split("-")[1])
        return arguments[2].get("step", -1) if step_from == "line" else 0


class Counter:
    """Counts this thread's calls while a place is entered; at call `at` it ends the process."""

    def __init__(self, kind: str, at: int | None = None):
        self.kind, self.at, self.count = kind, at, 0

    def __call__(self, frame, event, argument):
        if event == "c_call" and argument.__name__ in FILE_CALLS or event in ("call", "c_call") and self.kind == "any":
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1

    def run(self, call):
        sys.setprofile(self)
        try:
            return call()
        finally:
            sys.setprofile(None)


# ---------------------------------------------------------------- faults


def kill(fault: dict) -> None:
    """SIGKILL inside `place` at `step`, at call number `at` of `calls` ("any" or "file"), or on leaving where there are fewer."""

    def around(place, step, call):
        if (place, step) != (fault["place"], fault["step"]):
            return call()
        try:
            return Counter(fault["calls"], fault["at"]).run(call)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    Places(around)


def trace(folder: str, rank: int) -> None:
    """Write how many calls each place takes at each step: [[place, step, any, file], ...]."""
    counts: list[list] = []
    nested: list[Counter] = []

    def around(place, step, call):
        any_, file = Counter("any"), Counter("file")

        def both(frame, event, argument):
            any_(frame, event, argument)
            file(frame, event, argument)
            for outer in nested:
                outer(frame, event, argument)

        before = sys.getprofile()
        added = [any_, file] if place != "write" else []  # a thread of its own: not within the place of another one
        sys.setprofile(both)
        nested.extend(added)
        try:
            return call()
        finally:
            sys.setprofile(before)
            for counter in added:
                nested.remove(counter)
            counts.append([place, step, any_.count, file.count])
            Path(folder, f"{rank}.json").write_text(json.dumps(counts))

    Places(around)


def delay(fault: dict) -> None:
    """`seconds` of sleep on entering `place` at `step`."""

    def around(place, step, call):
        if (place, step) == (fault["place"], fault["step"]):
            time.sleep(fault["seconds"])
        return call()

    Places(around)


def poison(fault: dict) -> None:
    """A weight of this rank is NaN before `step` is computed, as after an error of the hardware."""
    import torch

    def around(place, step, call):
        if (place, step) == ("step", fault["step"]):
            with torch.no_grad():
                engine = places._trainer.parts.engine
                next(p for _, p in engine.parameters if p.numel()).view(-1)[0] = float("nan")
        return call()

    places = Places(around)


def file_limit(fault: dict) -> None:
    """From `place` at `step` on no file of this process may become longer than `bytes`: writing fails as on a full disk, with
    EFBIG in place of ENOSPC."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def around(place, step, call):
        if (place, step) == (fault["place"], fault["step"]):
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], fault["bytes"]))
        return call()

    Places(around)


def miscount(fault: dict) -> None:
    """A resume counts a token too much: what the comparison of curves must see."""

    def made(original):
        def resume(trainer, path):
            step = original(trainer, path)
            trainer.tokens += 1
            return step

        return resume

    replace("mads.train.loop:Trainer._resume", made)


def publish_slowly(fault: dict) -> None:
    """A checkpoint gets its name before its files: what the look at what kills leave behind must see."""
    import shutil

    def made(original):
        def publish(root, temporary, step, files):
            named = root / f"step-{step:08d}"
            named.mkdir(exist_ok=True)
            for name in sorted(files):
                shutil.copy(temporary / name, named / name)
            return original(root, temporary, step, files)

        return publish

    replace("mads.checkpoint.writing:publish", made)


FAULTS = {f.__name__: f for f in (kill, delay, poison, file_limit, miscount, publish_slowly)}


# ---------------------------------------------------------------- the ranks and their launcher


def rank_main(life: dict, rank: int, port: int) -> int:
    """In the forked process: what a launcher's worker is, with its faults."""
    with open(life["log"], "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    world = str(life["world"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world, LOCAL_WORLD_SIZE=world)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), MADS_PARENT=str(os.getppid()))
    from mads.train.signals import Notice
    from mads.train.worker import main

    for fault in life["faults"]:
        if fault["rank"] in (rank, "all"):
            FAULTS[fault["kind"]](fault)
    if life["trace"]:
        trace(life["trace"], rank)
    return main(life["overrides"], Notice().listen())


def fork_rank(life: dict, rank: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = rank_main(life, rank, port)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as in the harness: destructors of native libraries sometimes abort


def reap(pids: dict[int, int], codes: dict[int, int]) -> None:
    for rank, pid in pids.items():
        if rank not in codes:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[rank] = os.waitstatus_to_exitcode(status)


def run_life(life: dict) -> dict:
    """Exit codes in rank order, and which ranks the launcher had to end."""
    from mads.launch.processes import free_port

    port, start = free_port(), time.monotonic()
    pids = {rank: fork_rank(life, rank, port) for rank in range(life["world"])}
    codes: dict[int, int] = {}
    failed = ended = None
    while len(codes) < len(pids):
        reap(pids, codes)
        now = time.monotonic()
        if failed is None and any(codes.values()):
            failed = now
        late = now - start > life["limit_s"]
        if len(codes) < len(pids) and (late or failed is not None and now - failed >= life["linger"]):
            # At once where nothing is to live on: as when the machine goes. Else as the launcher of mads does it.
            first, ended = ended is None, ended or now
            deadly = late or not life["linger"] or now - ended > GRACE_S
            for rank, pid in pids.items():
                if rank not in codes and (first or deadly):
                    os.kill(pid, signal.SIGKILL if deadly else signal.SIGHUP)
        time.sleep(0.01)
    return {"codes": [codes[rank] for rank in sorted(codes)], "seconds": time.monotonic() - start}


def main() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # no life without the process that started this one
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print while they are loaded is no answer
    os.environ["OMP_NUM_THREADS"] = "1"
    warnings.simplefilter("ignore")
    from harness import PRELOADED

    from mads.launch.processes import prepare_worker

    prepare_worker(False)
    for name in (*PRELOADED, "mads.train.worker", "mads.train.loop"):
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(run_life(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
