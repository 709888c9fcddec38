"""The loader: turns the decided list of a round into packed global batches, the same for every data-parallel size.

Row n * G + a * (dp * mbs) + r * mbs + m of the round's packing is row m of micro-batch a of rank r at step n, where G is the
global batch size in rows, dp the data-parallel size and mbs the micro batch size. Rows that do not fill a last global batch
are not trained on: their samples stay in the pool, and the ledger never hears of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mads.data.batch import PackedBatch
from mads.data.packing import Packer
from mads.data.pool import Pool
from mads.data.schema import DataError
from mads.data.workers import WorkerBatches, build


@dataclass(frozen=True)
class StepBatch:
    """What one optimizer step trains on.

    micro_batches: this rank's accumulation steps, [micro_batch_size, seq_length] each
    valid_tokens: targets of the global batch, over all ranks
    sample_ids, sample_positions: int64, all samples of the global batch on every rank, row-major; positions are the pool's
    tokens: tokens of the global batch, padding not counted
    """

    micro_batches: list[PackedBatch]
    valid_tokens: int
    sample_ids: np.ndarray
    sample_positions: np.ndarray
    tokens: int


@dataclass(frozen=True)
class _Plan:
    """The samples of a global batch: positions int64 [n], row-major, row r from starts[r] to starts[r + 1]."""

    positions: np.ndarray
    starts: np.ndarray
    tokens: int

    def rows(self, first: int, last: int) -> list[np.ndarray]:
        """Positions of the samples of the rows first .. last - 1, one array a row."""
        return [self.positions[self.starts[r] : self.starts[r + 1]] for r in range(first, last)]


class Loader:
    """Packed batches of one data-parallel rank.

    A thread packs and reads up to `prefetch` micro-batches ahead (0: when asked for), itself or by `workers` processes. Rows are
    packed a step before their samples are due, and the operating system is asked for the samples' pages then. All of it fills a
    queue in a fixed order, so the batches are the same bit for bit whatever the speed and the number of workers.

    Args:
        finish: what becomes of every batch before it is handed out, in that thread; None: nothing.

    Raises:
        ValueError: a global batch size that micro_batch_size * dp_size does not divide, a rank outside the group, or workers
            without prefetch.
    """

    def __init__(
        self,
        pool: Pool,
        seq_length: int,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
        prefetch: int = 0,
        workers: int = 0,
        finish: Callable[[PackedBatch], PackedBatch] | None = None,
    ):
        if min(global_batch_size, micro_batch_size, dp_size) < 1 or global_batch_size % (micro_batch_size * dp_size):
            raise ValueError(
                f"global_batch_size {global_batch_size} is not a multiple of micro_batch_size {micro_batch_size} x "
                f"data-parallel size {dp_size} = {micro_batch_size * dp_size}"
            )
        if not 0 <= dp_rank < dp_size or min(prefetch, workers) < 0 or (workers and not prefetch):
            raise ValueError(
                f"dp_rank {dp_rank} of dp_size {dp_size} with prefetch {prefetch}, workers {workers} is not possible"
            )
        if seq_length < pool.manifest.seq_length:
            raise ValueError(f"seq_length {seq_length} is shorter than the prepared samples, {pool.manifest.seq_length} tokens")
        self.pool, self.seq_length = pool, seq_length
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.dp_rank, self.dp_size, self.prefetch = dp_rank, dp_size, prefetch
        self.accumulation = global_batch_size // (micro_batch_size * dp_size)
        self.round = -1
        self.position = 0
        self._packer: Packer | None = None
        self._positions = self._lengths = np.zeros(0, np.int64)
        self._consumed = 0  # tokens of the round
        self._plans: dict[int, _Plan | None] = {}  # by step, from the current one on; None once the round is at its end
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="mads-loader") if prefetch else None
        self._worker_count, self._workers, self._begun = workers, None, False
        self._finish = finish or (lambda batch: batch)
        self._ahead: deque[Future] = deque()
        self._scheduled = 0  # micro-batches of this round handed to the thread so far, counted from its first batch

    def rebind(self, pool: Pool) -> None:
        """Read from a longer pool, whose first samples are those of the one before, from the next `begin_round` on."""
        self._cancel()
        self._end_workers()  # they hold maps of the former pool's files
        self.pool = pool

    def begin_round(self, round_: int, ids: np.ndarray, position: int = 0) -> None:
        """Start on a decision: `ids` in decided order. `position` global batches of it were consumed before (on resume).

        Raises:
            DataError: an id that is not in the pool or occurs twice, too few ids for one global batch, or a position past
                the end.
        """
        positions = self.pool.positions_of(ids)
        _check_unique(round_, ids, positions)
        lengths = self.pool.lengths[positions]
        packer = Packer(lengths, self.seq_length)
        consumed = packer.take(position * self.global_batch_size) if position >= 0 else None
        if consumed is None:
            raise DataError(
                f"round {round_} fills {packer.take_all().rows // self.global_batch_size} global batches; "
                f"it cannot be continued at batch {position}"
            )
        self._cancel()
        self.round, self.position = round_, position
        self._packer, self._positions, self._lengths, self._plans = packer, positions, lengths, {}
        self._scheduled, self._consumed = position * self.accumulation, int(lengths[consumed.order].sum(dtype=np.int64))
        if self._plan(position) is None and position == 0:
            self._plans = {}
            raise DataError(
                f"round {round_}: {len(positions)} samples fill {packer.take_all().rows} rows of {self.seq_length} tokens, "
                f"a global batch takes {self.global_batch_size}: prepare more data or lower train.global_batch_size"
            )

    @property
    def tokens_left(self) -> int:
        """Tokens of the decided samples that no step has consumed."""
        return int(self._lengths.sum(dtype=np.int64)) - self._consumed

    @property
    def exhausted(self) -> bool:
        """Whether the round holds no further global batch."""
        if self._packer is None:
            return True
        if self.position not in self._plans and self._executor is not None:
            self._executor.submit(self._plan, self.position).result()  # the packer belongs to the thread
        return self._plan(self.position) is None

    def next(self) -> StepBatch:
        """The next global batch's share of this rank.

        Raises:
            DataError: the round has no batch left, or the data could not be read.
        """
        if self.exhausted:
            raise DataError(f"round {self.round} has no batch left after {self.position}; begin the next round")
        start = self.position * self.accumulation
        try:
            micro_batches = [self._take(index) for index in range(start, start + self.accumulation)]
        except BaseException:
            self._cancel()  # what is queued no longer begins at this step
            self._end_workers()  # one of them may be gone
            self._scheduled = start
            raise
        plan = self._plans.pop(self.position)
        self.position += 1
        self._consumed += plan.tokens
        return StepBatch(
            micro_batches,
            valid_tokens=plan.tokens - len(plan.positions),  # a sample of n tokens has n - 1 targets
            sample_ids=self.pool.ids[plan.positions],
            sample_positions=plan.positions,
            tokens=plan.tokens,
        )

    def _plan(self, step: int) -> _Plan | None:
        """The samples of a step that comes next or was planned before; None if the round's rows do not fill it."""
        if step not in self._plans:
            packing = self._packer.take(self.global_batch_size)
            plan = None
            if packing is not None:
                plan = _Plan(
                    self._positions[packing.order], packing.starts, int(self._lengths[packing.order].sum(dtype=np.int64))
                )
                for a in range(self.accumulation):
                    self.pool.token_shards.will_need(np.concatenate(plan.rows(*self._own_rows(a))))
            self._plans[step] = plan
        return self._plans[step]

    def _own_rows(self, accumulated: int) -> tuple[int, int]:
        """(first, last + 1) row in the global batch of this rank's micro-batch `accumulated`."""
        first = (accumulated * self.dp_size + self.dp_rank) * self.micro_batch_size
        return first, first + self.micro_batch_size

    def _rows(self, index: int) -> list[np.ndarray] | None:
        """The rows of micro-batch `index` of this rank, counted from the round's first batch; None behind the last one."""
        step, accumulated = divmod(index, self.accumulation)
        plan = self._plan(step)
        if plan is None:
            return None
        if accumulated == 0:
            self._plan(step + 1)  # its pages arrive while this step is trained on
        return plan.rows(*self._own_rows(accumulated))

    def _work_from(self, index: int) -> Iterator[list[np.ndarray]]:
        while (rows := self._rows(index)) is not None:
            yield rows
            index += 1

    def _build(self, index: int) -> PackedBatch | None:
        """Micro-batch `index` of this rank; None behind the last one."""
        rows = self._rows(index)
        return None if rows is None else self._finish(build(self.pool.token_shards, rows, self.seq_length))

    def _from_workers(self) -> PackedBatch | None:
        batch = self._workers.take()
        return None if batch is None else self._finish(batch)

    def _take(self, index: int) -> PackedBatch:
        if self._executor is None:
            return self._build(index)
        self._schedule()
        batch = self._ahead.popleft().result()
        self._schedule()
        return batch

    def _schedule(self) -> None:
        if self._worker_count and not self._begun:
            self._executor.submit(self._begin_workers, self._scheduled).result()
        while len(self._ahead) < self.prefetch:
            ahead = (self._from_workers,) if self._workers else (self._build, self._scheduled)
            self._ahead.append(self._executor.submit(*ahead))
            self._scheduled += 1

    def _begin_workers(self, index: int) -> None:
        if self._workers is None:
            self._workers = WorkerBatches(self.pool.token_shards, self.seq_length, self._worker_count)
        self._workers.begin(lambda: self._work_from(index))
        self._begun = True

    def _end_workers(self) -> None:
        if self._workers is not None:
            self._workers.close()
        self._workers, self._begun = None, False

    def _cancel(self) -> None:
        """Forget what was packed ahead; returns when the thread is idle."""
        self._begun = False
        for future in self._ahead:
            future.cancel()
        while self._ahead:
            future = self._ahead.popleft()
            if not future.cancelled():
                future.exception()

    def close(self) -> None:
        """End the thread and the workers. The loader gives no further batch with prefetch > 0."""
        self._cancel()
        self._end_workers()
        if self._executor is not None:
            self._executor.shutdown(wait=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind, value, traceback) -> None:
        self.close()

    # ------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """JSON state: with the round's ids (which the console keeps) it resumes at exactly the next sample."""
        return {
            "fingerprint": self.pool.fingerprint,
            "shards": len(self.pool.shards),
            "part": self.pool.part,
            "seq_length": self.seq_length,
            "global_batch_size": self.global_batch_size,
            "round": self.round,
            "position": self.position,
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """The pool may have grown since: its first shards have to be those of the state.

        Raises:
            DataError: if `state` is of other data, or counts batches of another shape.
        """
        own = self.state()
        for key in ("part", "seq_length", "global_batch_size"):
            if state[key] != own[key]:
                raise DataError(
                    f"the checkpoint counts batches with {key} {state[key]}, this run has {own[key]}; resume with the former"
                )
        shards, here = state["shards"], len(self.pool.shards)
        found = self.pool.manifest.shards_fingerprint(self.pool.part, min(shards, here))
        if shards > here or found != state["fingerprint"]:
            raise DataError(
                f"the checkpoint was trained on {shards} shards with fingerprint {state['fingerprint']}, data.dir holds {here}, "
                f"the first {min(shards, here)} with fingerprint {found}: point data.dir to the former data or start a new run"
            )


def _check_unique(round_: int, ids: np.ndarray, positions: np.ndarray) -> None:
    """Raises DataError for a sample that occurs twice."""
    ordered = np.sort(positions)  # several times faster than np.unique with counts, on millions
    if (ordered[1:] == ordered[:-1]).any():
        unique, first, counts = np.unique(positions, return_index=True, return_counts=True)
        repeated, again = int(np.asarray(ids)[first[np.argmax(counts > 1)]]), len(positions) - len(unique)
        raise DataError(f"round {round_}: {again} of {len(positions)} sample ids occur again, one is {repeated}")
