"""The loader: turns the decided list of a round into packed global batches, the same for every data-parallel size.

Row n * G + a * (dp * mbs) + r * mbs + m of the round's packing is row m of micro-batch a of rank r at step n, where G is the
global batch size in rows, dp the data-parallel size and mbs the micro batch size. Rows that do not fill a last global batch
are not trained on: their samples stay in the pool, and the ledger never hears of them.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from mads.data.batch import PackedBatch, make_batch
from mads.data.packing import Packing, pack
from mads.data.pool import Pool
from mads.data.schema import DataError


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


class Loader:
    """Packed batches of one data-parallel rank.

    A thread packs up to `prefetch` micro-batches ahead (0: packed when asked for). It only fills a queue in a fixed order, so the
    batches are the same bit for bit whatever its speed.

    Raises:
        ValueError: a global batch size that micro_batch_size * dp_size does not divide, or a rank outside the group.
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
    ):
        if min(global_batch_size, micro_batch_size, dp_size) < 1 or global_batch_size % (micro_batch_size * dp_size):
            raise ValueError(
                f"global_batch_size {global_batch_size} is not a multiple of micro_batch_size {micro_batch_size} x "
                f"data-parallel size {dp_size} = {micro_batch_size * dp_size}"
            )
        if not 0 <= dp_rank < dp_size or prefetch < 0:
            raise ValueError(f"dp_rank {dp_rank} of dp_size {dp_size} with prefetch {prefetch} is not possible")
        if seq_length < pool.manifest.seq_length:
            raise ValueError(f"seq_length {seq_length} is shorter than the prepared samples, {pool.manifest.seq_length} tokens")
        self.pool, self.seq_length = pool, seq_length
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.dp_rank, self.dp_size, self.prefetch = dp_rank, dp_size, prefetch
        self.accumulation = global_batch_size // (micro_batch_size * dp_size)
        self.round = -1
        self.position = 0
        self._packing: Packing | None = None
        self._positions = np.zeros(0, np.int64)
        self._batches = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="mads-loader") if prefetch else None
        self._ahead: deque[Future] = deque()
        self._scheduled = 0  # micro-batches of this round handed to the thread so far, counted from its first batch

    def begin_round(self, round_: int, ids: np.ndarray, position: int = 0) -> None:
        """Start on a decision: `ids` in decided order. `position` global batches of it were consumed before (on resume).

        Raises:
            DataError: an id that is not in the pool or occurs twice, too few ids for one global batch, or a position past
                the end.
        """
        positions = self.pool.positions_of(ids)
        unique, first, counts = np.unique(positions, return_index=True, return_counts=True)
        if len(unique) != len(positions):
            repeated = int(np.asarray(ids)[first[np.argmax(counts > 1)]])
            again = len(positions) - len(unique)
            raise DataError(f"round {round_}: {again} of {len(positions)} sample ids occur again, one is {repeated}")
        packing = pack(self.pool.lengths[positions], self.seq_length)
        batches = packing.rows // self.global_batch_size
        if batches == 0:
            raise DataError(
                f"round {round_}: {len(positions)} samples fill {packing.rows} rows of {self.seq_length} tokens, "
                f"a global batch takes {self.global_batch_size}: prepare more data or lower train.global_batch_size"
            )
        if not 0 <= position <= batches:
            raise DataError(f"round {round_} has {batches} global batches; it cannot be continued at batch {position}")
        self._cancel()
        self.round, self.position = round_, position
        self._packing, self._positions, self._batches = packing, positions, batches
        self._scheduled = position * self.accumulation

    @property
    def batches_left(self) -> int:
        """Global batches that the round still holds."""
        return self._batches - self.position

    def next(self) -> StepBatch:
        """The next global batch's share of this rank.

        Raises:
            DataError: the round has no batch left, or the data could not be read.
        """
        if self.batches_left <= 0:
            raise DataError(f"round {self.round} has no batch left after {self.position}; begin the next round")
        first = self.position * self.global_batch_size
        last = first + self.global_batch_size
        start = self.position * self.accumulation
        try:
            micro_batches = [self._take(index) for index in range(start, start + self.accumulation)]
        except BaseException:
            self._cancel()  # what is queued no longer begins at this step
            self._scheduled = start
            raise
        positions = self._positions[self._packing.samples_of_rows(first, last)]
        batch = StepBatch(
            micro_batches,
            valid_tokens=self._packing.valid_tokens(first, last),
            sample_ids=self.pool.ids[positions],
            sample_positions=positions,
            tokens=self._packing.tokens(first, last),
        )
        self.position += 1
        return batch

    def _take(self, index: int) -> PackedBatch:
        if self._executor is None:
            return self._build(index)
        self._schedule()
        batch = self._ahead.popleft().result()
        self._schedule()
        return batch

    def _schedule(self) -> None:
        while len(self._ahead) < self.prefetch and self._scheduled < self._batches * self.accumulation:
            self._ahead.append(self._executor.submit(self._build, self._scheduled))
            self._scheduled += 1

    def _build(self, index: int) -> PackedBatch:
        """Micro-batch `index` of this rank, counted from the round's first batch."""
        stride = self.dp_size * self.micro_batch_size  # accumulation * stride = global_batch_size, so steps need no extra term
        first = index * stride + self.dp_rank * self.micro_batch_size
        rows = range(first, first + self.micro_batch_size)
        return make_batch([self.pool.tokens(self._positions[self._packing.samples_of_row(r)]) for r in rows], self.seq_length)

    def state(self) -> dict[str, Any]:
        """JSON state: with the round's ids (which the console keeps) it resumes at exactly the next sample."""
        return {
            "fingerprint": self.pool.fingerprint,
            "part": self.pool.part,
            "seq_length": self.seq_length,
            "global_batch_size": self.global_batch_size,
            "round": self.round,
            "position": self.position,
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises DataError if `state` is of other data, or counts batches of another shape."""
        own = self.state()
        if state["fingerprint"] != own["fingerprint"]:
            raise DataError(
                f"the checkpoint was trained on data with fingerprint {state['fingerprint']}, "
                f"data.dir holds {own['fingerprint']}: point data.dir to the former data or start a new run"
            )
        for key in ("part", "seq_length", "global_batch_size"):
            if state[key] != own[key]:
                raise DataError(
                    f"the checkpoint counts batches with {key} {state[key]}, this run has {own[key]}; resume with the former"
                )

    def _cancel(self) -> None:
        """Forget what was packed ahead; returns when the thread is idle."""
        for future in self._ahead:
            future.cancel()
        while self._ahead:
            future = self._ahead.popleft()
            if not future.cancelled():
                future.exception()

    def close(self) -> None:
        """End the thread. The loader gives no further batch with prefetch > 0."""
        self._cancel()
        if self._executor is not None:
            self._executor.shutdown(wait=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind, value, traceback) -> None:
        self.close()
