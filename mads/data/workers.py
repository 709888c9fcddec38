"""Worker processes that read samples and lay them out as batches, in order."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mads.data.batch import PackedBatch, make_batch
from mads.data.indexed import IndexedReader, TokenShards

_PRELOAD = ["mads.data.workers"]

Row = np.ndarray  # positions of the samples of a packed row, int64


def build(shards: TokenShards, rows: Sequence[Row], seq_length: int) -> PackedBatch:
    """The batch whose rows hold these samples."""
    return make_batch([shards.tokens(row) for row in rows], seq_length)


class _Batches(Dataset):
    """What a worker computes: a pure function of the rows it is sent. It keeps nothing of a round."""

    def __init__(self, shards: TokenShards, seq_length: int):
        # Opened with the first batch: an error then has a way back to the training process, one at the start has not.
        self._prefixes, self._shards, self._seq_length = [reader.prefix for reader in shards.readers], None, seq_length

    def __getitem__(self, rows: Sequence[Row]) -> tuple[torch.Tensor, int]:
        if self._shards is None:
            self._shards = TokenShards([IndexedReader(prefix, check=False) for prefix in self._prefixes])
        batch = build(self._shards, rows, self._seq_length)
        # One tensor: each one is a file descriptor on its way between the processes.
        return batch.block, batch.samples


class _Queue:
    """The sampler: whatever the current round has to be built, in order."""

    def __init__(self):
        self.work: Callable[[], Iterator[Sequence[Row]]] = lambda: iter(())

    def __iter__(self) -> Iterator[Sequence[Row]]:
        return self.work()


def _as_it_is(item):
    return item


# Slurm sends them to every process of a step, and the run is to finish its step first (docs/faults.md).
NOT_FOR_WORKERS = (signal.SIGTERM, signal.SIGUSR1)


def _start_fork_server() -> None:
    """With these signals blocked, for good: what it and its workers inherit."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_WORKERS)
    try:
        resource_tracker.ensure_running()  # which unblocks SIGTERM in this process
        signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_WORKERS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_with_parent(worker: int) -> None:
    """End this worker when the training process asks for it, or is gone.

    DataLoader's own watchdog waits for another parent process. Here the parent is the fork server, which lives as long as the
    workers hold its pipe: after a kill of the training process all of them would stay for ever.
    """
    parent = multiprocessing.parent_process()
    signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_WORKERS)

    def wait_for_end():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    def wait_for_signal():
        while signal.sigwaitinfo(NOT_FOR_WORKERS).si_pid != parent.pid:  # another's is for the training process
            pass
        os._exit(1)

    for wait in (wait_for_end, wait_for_signal):
        threading.Thread(target=wait, daemon=True).start()


class WorkerBatches:
    """Batches from `workers` processes, in the order of the work whatever the processes' speed.

    The processes come from a fork server: a plain fork of a training process would copy its threads' locks (gloo, NCCL, wandb)
    and its CUDA context in whatever state they are. They live as long as this object, for any number of rounds, and end by
    themselves when the training process is gone.
    """

    def __init__(self, shards: TokenShards, seq_length: int, workers: int):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)  # torch is imported once, not by every worker
        _start_fork_server()
        self._queue = _Queue()
        self._loader = DataLoader(
            _Batches(shards, seq_length),
            batch_size=None,
            sampler=self._queue,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_end_with_parent,
            persistent_workers=True,
            multiprocessing_context=context,
        )
        self._batches: Iterator[tuple[torch.Tensor, int]] = iter(())

    def begin(self, work: Callable[[], Iterator[Sequence[Row]]]) -> None:
        """Start on other work: `work()` yields the rows of each batch. What is under way is dropped."""
        self._queue.work = work
        self._batches = iter(self._loader)

    def take(self) -> PackedBatch | None:
        """The next batch; None when the work is done.

        Raises:
            RuntimeError: a worker has ended. An error inside of a worker is raised as what it was, with the worker's traceback.
        """
        try:
            item = next(self._batches, None)
        except (ConnectionError, EOFError) as error:  # its last batch is fetched from the worker itself
            raise RuntimeError(f"a worker process of the loader exited unexpectedly ({error})") from error
        return None if item is None else PackedBatch.of_block(*item)

    def close(self) -> None:
        """End the processes."""
        running = (
            self._loader._iterator
        )  # public ways end them only when the last reference is gone, and an error's traceback is one
        self._batches, self._loader = iter(()), None
        if running is not None:
            running._shutdown_workers()
