"""The processes of a preparation: each takes whatever task is free, until there is none left; one of them tells how it goes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

from threadpoolctl import threadpool_limits

from mads.data.prepare.board import Board, Tally
from mads.data.prepare.job import Job
from mads.data.prepare.stages import STAGES, run_task, task_bytes, tasks_of
from mads.data.schema import DataError

_POLL_S = (0.1, 2.0)  # first and longest pause before another look at a folder that many nodes look at
_SHOW_S = 5.0


def work_through(job: Job, say: Callable[[str], None]) -> None:
    """Do free tasks until the preparation is complete. Other processes may do the same at the same time.

    Raises:
        DataError: whatever a task raises.
    """
    board = Board(job.directory)
    # Sums of BLAS depend on the number of its threads, and so would fitted labellers.
    with threadpool_limits(limits=1):
        try:
            for stage in STAGES:
                names = tasks_of(job, stage)
                _complete(job, board, stage, names, say)
        except FileNotFoundError:
            if board.is_open:
                raise


def _complete(job: Job, board: Board, stage: str, names: list[str], say: Callable[[str], None]) -> None:
    """Return when all tasks of the stage are done, by whomever."""
    pending, pause = list(names), _POLL_S[0]
    while pending and board.is_open:
        done = board.done()
        pending = [name for name in pending if name not in done]
        claimed = board.claims()
        free = sorted(pending, key=lambda name: name in claimed)  # those that seem free first
        taken = next((name for name in free if board.claim(name)), None)
        if taken is None:
            time.sleep(pause)
            pause = min(2 * pause, _POLL_S[1])
            continue
        pause = _POLL_S[0]
        if board.is_done(taken):  # between our two looks
            board.release(taken)
        else:
            _do(job, board, stage, taken, say)


def _do(job: Job, board: Board, stage: str, task: str, say: Callable[[str], None]) -> None:
    tally = Tally()
    scratch = board.start(task)
    try:
        with board.heartbeat(task, tally):
            notes = run_task(job, stage, task, scratch, tally)
        board.finish(task, scratch, tally)
    except BaseException:
        board.release(task, scratch)
        raise
    for note in notes:
        say(note)
    if stage == STAGES[-1]:
        board.close()


# ---------------------------------------------------------------- processes


@contextmanager
def _interrupts_held():
    """Ctrl-C goes to all processes of a terminal. A worker that is started in here inherits that it waits, and does not die with
    a traceback while it is still importing; here it comes when the block is left."""
    resource_tracker.ensure_running()  # the first start of a process would let it through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_processes(job: Job, workers: int, progress: Callable[[str], None]) -> None:
    """As `work_through`, with `workers` processes; this one shows how far all of them are.

    Raises:
        DataError: what a worker could not go on with; the others are ended.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of threads that do not exist in the copy
    processes, ends = [], {}
    shown = _Progress(job, progress)
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_worker, args=(job, theirs), daemon=True)
            with _interrupts_held():
                process.start()
                processes.append(process)
            theirs.close()
            ends[ours] = process
        while ends:
            for end in wait(list(ends), timeout=1.0):
                _listen(end, ends, progress)
            shown.update()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _listen(end, ends: dict, progress: Callable[[str], None]) -> None:
    """Take one message of a worker, or its end."""
    try:
        kind, text = end.recv()
    except EOFError:
        process = ends.pop(end)
        process.join()
        if process.exitcode:
            how = f"killed by signal {-process.exitcode}" if process.exitcode < 0 else f"ended with code {process.exitcode}"
            raise DataError(
                f"a worker of the preparation was {how}; if memory ran out, use fewer --workers. "
                "The same command goes on from here"
            ) from None
        return
    if kind == "note":
        progress(text)
    elif kind == "bad input":
        raise DataError(text)
    else:
        raise RuntimeError(f"a worker of the preparation failed:\n{text}")


def _worker(job: Job, end) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # what it starts need not inherit that Ctrl-C waits
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work_through(job, lambda note: end.send(("note", note)))
    except DataError as error:
        end.send(("bad input", str(error)))
    except OSError as error:
        named = error.filename is not None
        end.send(("bad input", f"cannot use {error.filename}: {error.strerror}") if named else ("error", traceback.format_exc()))
    except BaseException:
        end.send(("error", traceback.format_exc()))
    end.close()


def _end_with_parent() -> None:
    """A killed first process takes its workers with it; a pipe alone would not tell them while they compute."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


class _Progress:
    """Lines about the stage that is under way, over the processes of all machines."""

    def __init__(self, job: Job, say: Callable[[str], None]):
        self._job, self._say, self._board = job, say, Board(job.directory)
        self._stage, self._begun, self._at_begin = "", 0.0, Tally()
        self._finished: dict[str, Tally] = {}
        self._shown = time.monotonic()

    def update(self) -> None:
        if time.monotonic() - self._shown < _SHOW_S or not self._board.is_open:
            return
        self._shown = time.monotonic()
        try:
            self._show_stage_under_way()
        except FileNotFoundError:  # a worker has closed the board while it was read
            if self._board.is_open:
                raise

    def _show_stage_under_way(self) -> None:
        done = self._board.done()
        for stage in STAGES:
            names = tasks_of(self._job, stage)
            if not all(name in done for name in names):
                self._show(stage, names, done)
                return

    def _show(self, stage: str, names: list[str], done: set[str]) -> None:
        for name in names:
            if name in done and name not in self._finished:
                self._finished[name] = self._board.tally(name)
        running = [self._board.tally(name) for name in self._board.claims() if name in names and name not in done]
        parts = [self._finished[name] for name in names if name in done] + running
        now = Tally(sum(t.documents for t in parts), sum(t.bytes for t in parts))
        if stage != self._stage:
            self._stage, self._begun, self._at_begin = stage, time.monotonic(), now
            return
        seconds = time.monotonic() - self._begun
        documents, size = now.documents - self._at_begin.documents, now.bytes - self._at_begin.bytes
        finished = sum(name in done for name in names)
        line = f"{stage}: {finished} of {len(names)} tasks"
        if size > 0:
            line += f", {now.documents:,} documents, {documents / seconds:,.0f} documents/s, {size / seconds / 1e6:.1f} MB/s"
            sizes = task_bytes(self._job, stage)
            if sizes is not None:
                line += f", about {max(0, sum(sizes) - now.bytes) / size * seconds:,.0f} s left"
        self._say(line)
