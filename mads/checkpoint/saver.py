"""Saves the checkpoints of a run. The training step waits only until every rank has a copy of its share in CPU memory."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mads import collectives
from mads.checkpoint.manifest import CheckpointError, Keep, recorded
from mads.checkpoint.tensors import KEYS, assemble, deal, gather_pieces, logical_shapes, stage_items, write_pieces, write_tensors
from mads.checkpoint.writing import Publication, Writer, attempt
from mads.layout import Layout, layout_of

JOIN_S = 1.0  # between two looks at a save that is waited for
HURRY_S = 60.0  # for other ranks' files, when this process is about to end


@dataclass(frozen=True)
class Saved:
    """How a save went, as rank 0 sees it.

    stall_seconds: that training waited for it; write_seconds: that writing and publishing took; bytes: of all files;
    error: why it failed, or None.
    """

    step: int
    stall_seconds: float
    write_seconds: float
    bytes: int
    error: str | None


def raise_together(error: str | None, control, what: str, otherwise: str | None = None) -> None:
    """Raise on every rank if it failed on any, so that nobody waits for a rank that has given up. Collective.

    Args:
        otherwise: what this rank knows in case that no rank has an error of its own.

    Raises:
        CheckpointError: naming the ranks and their errors.
    """
    outcomes = collectives.all_gather_json([error, otherwise], control)
    ranks: dict[str, list[int]] = {}
    for which in (0, 1):
        for rank, outcome in enumerate(outcomes):
            if outcome[which] and (which == 0 or not ranks):
                ranks.setdefault(outcome[which], []).append(rank)
    told = [f"{f'rank {r[0]}' if len(r) == 1 else f'ranks {r}'}: {error}" for error, r in ranks.items()]
    if told:
        raise CheckpointError(f"{what} failed: " + "; ".join(told))


@dataclass
class _Job:
    """One save. publication: on rank 0."""

    step: int
    writer: Writer
    publication: Publication | None
    stall_seconds: float = 0.0

    @property
    def error(self) -> str | None:
        return self.writer.error or self.writer.abandoned

    @property
    def done(self) -> int:
        """Grows with every file of this rank and, on rank 0, with every rank that has written its own."""
        return self.writer.written + (self.publication.there if self.publication else 0)


class Chunks:
    """Collects tensors of one key and hands a file to the writer whenever `max_bytes` are together."""

    def __init__(self, key: str, max_bytes: int, writer: Writer):
        self._key, self._max, self._writer = key, max_bytes, writer
        self._pending: dict[str, torch.Tensor] = {}
        self._files = 0

    def add(self, name: str, pieces: list[torch.Tensor], layout: Layout) -> None:
        """Take a copy of the logical tensor of these shards."""
        tensor = assemble(pieces, layout)
        if self._pending and sum(t.nbytes for t in self._pending.values()) + tensor.nbytes > self._max:
            self.flush()
        self._pending[name] = tensor

    def flush(self) -> None:
        if self._pending:
            file = f"{self._key}-{self._writer.rank:05d}-{self._files:05d}.safetensors"
            write = functools.partial(write_tensors, tensors=self._pending)
            self._writer.add(file, write, [(self._key, name) for name in self._pending])
            self._files += 1
            self._pending = {}


class Saver:
    """Saves below `root`, one checkpoint at a time. Its methods are collective unless they say otherwise.

    Args:
        root: a folder that all ranks see.
        keep: which complete checkpoints stay.
        max_file_bytes: most bytes of tensors in a file, unless one tensor alone is larger.
        asynchronous: files are written while training goes on; False: `save` returns when the checkpoint is published, and a rank
            holds the tensors of no more than about three files.
        limit_s: the longest that rank 0 waits for another rank's files without any progress.
        say: shows a message; rank 0's is used.
        beat: called for every piece of work, while a caller waits for it.
    """

    def __init__(
        self,
        root: Path,
        topology,
        keep: Keep,
        max_file_bytes: int,
        asynchronous: bool = True,
        limit_s: float = 900.0,
        say: Callable[[str], None] = lambda text: None,
        beat: Callable[[], None] = lambda: None,
    ):
        self.root, self.topology, self.asynchronous = Path(root), topology, asynchronous
        self._keep, self._max_file_bytes, self._limit_s, self._say = keep, max_file_bytes, limit_s, say
        self._beat = beat
        self._job: _Job | None = None
        self._unreported: list[_Job] = []

    def save(
        self,
        step: int,
        engine,
        state: dict[str, Any],
        arrays: dict[str, np.ndarray],
        files: dict[str, Callable[[Path], None]],
    ) -> None:
        """Begin checkpoint `step`; when this returns, the parameters and all arguments may be changed.

        Args:
            engine: has `parameters` (name, parameter) and `state` (mads.train.optimizer_state).
            state: JSON values; arrays: NumPy arrays; both from rank 0.
            files: name -> a function that writes that file, called on all ranks together: rank 0 writes what the others send it.
                It must not raise before they have sent everything.

        Raises:
            CheckpointError: on all ranks if this save fails on any rank before it returns, or if the one before has failed.
                Earlier checkpoints are untouched.
        """
        start = time.perf_counter()
        self.wait()
        what, control = f"saving checkpoint {step}", self.topology.group("control")
        folder, error = self._make_folder(step, what)
        job = self._make_job(folder, step, engine)
        writer = job.writer
        try:
            if not self.asynchronous:
                writer.start()
            rng = collectives.ragged_all_gather(torch.get_rng_state().numpy()[None], control)
            if self.topology.rank == 0:
                state = state | {"topology": str(self.topology.grid), "optimizer_steps": engine.state.steps}
                error = error or attempt(_add_small, writer, state, arrays | {"rng": np.concatenate(rng)})
            for name, write in files.items():
                failure = attempt(write, folder / name)
                error = error or failure
                if self.topology.rank == 0:
                    writer.add(name, recorded)
            error = self._snapshot(engine, writer, error)
            raise_together(error, control, what)
        except BaseException:
            writer.cancel()
            if self.topology.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        writer.complete()
        if self.asynchronous:
            writer.start()
        self._job = job
        self._unreported.append(job)
        if not self.asynchronous:
            self.wait()
        job.stall_seconds = time.perf_counter() - start

    def _make_folder(self, step: int, what: str) -> tuple[Path, str | None]:
        """A temporary folder of a name that no earlier life of the run has used, whose late writers would be in the way; and what
        is wrong with it on this rank."""
        name, error = f".saving-{step:08d}-{os.urandom(4).hex()}", None
        if self.topology.rank == 0:
            error = attempt((self.root / name).mkdir, 0o777, True)
        name, error = collectives.broadcast_json([name, error], self.topology.group("control"))
        if error:
            raise CheckpointError(f"{what} failed: rank 0: {error}")
        visible = (self.root / name).is_dir()
        return self.root / name, None if visible else f"{self.root} is not the folder that rank 0 sees; let all nodes share it"

    def _make_job(self, folder: Path, step: int, engine) -> _Job:
        publication = None
        if self.topology.rank == 0:
            expected = {(key, name) for key in KEYS for name in logical_shapes(engine)}
            ranks = self.topology.world_size
            publication = Publication(self.root, folder, step, ranks, expected, self._keep, self._limit_s)
        return _Job(step, Writer(folder, self.topology.rank, not self.asynchronous, publication), publication)

    def _snapshot(self, engine, writer: Writer, error: str | None) -> str | None:
        """Copy what this rank writes to CPU memory, one tensor at a time. Returns what went wrong, or the `error` given: other
        ranks' gathers are taken part in whatever has happened here."""
        topology = self.topology
        stage = next(ranks for ranks in topology.grid.groups("dp", "cp", "tp") if topology.rank in ranks)
        owner = deal(stage_items(engine), stage)
        for key in KEYS:
            chunks = Chunks(key, self._max_file_bytes, writer)
            for name, parameter in engine.parameters:
                if (key, name) not in owner:
                    continue
                self._beat()
                pieces = gather_pieces(engine, topology, parameter, key, owner[key, name])
                if pieces is not None and error is None:
                    error = attempt(chunks.add, name, pieces, layout_of(parameter))
            chunks.flush()
        return error

    def wait(self) -> None:
        """Until the save in progress is published; says so if it is not yet.

        Raises:
            CheckpointError: on all ranks, if it failed: with the ranks and their errors. Its files are gone.
        """
        job, self._job = self._job, None
        if job is None:
            return
        if self.asynchronous and job.writer.is_alive():
            self._say(f"waiting for checkpoint {job.step}, which is still being written")
        done = -1
        while job.writer.is_alive():
            job.writer.join(JOIN_S)
            if job.done != done:
                done = job.done
                self._beat()
        control = self.topology.group("control")
        raise_together(job.writer.error, control, f"saving checkpoint {job.step}", job.writer.abandoned)

    def reports(self) -> list[Saved]:
        """The saves that have ended since the last call. A cheap look, not collective; of use on rank 0."""
        ended = [job for job in self._unreported if not job.writer.is_alive()]
        self._unreported = [job for job in self._unreported if job not in ended]
        return [
            Saved(job.step, job.stall_seconds, job.writer.seconds, job.publication.bytes if job.publication else 0, job.error)
            for job in ended
        ]

    def settle(self, seconds: float) -> None:
        """Give the save in progress so long to end. Not collective; from any thread."""
        job = self._job
        if job is not None:
            job.writer.join(seconds)

    def leave(self) -> None:
        """Before a process ends because of another error: let the save in progress end, and tell if it failed. Not collective."""
        job = self._job
        if job is None:
            return
        if job.publication is not None:
            job.publication.limit_s = min(job.publication.limit_s, HURRY_S)
        if job.writer.is_alive():
            self._say(f"letting checkpoint {job.step} be written before leaving")
        job.writer.join()
        if job.error:
            self._say(f"saving checkpoint {job.step} failed: {job.error}")


def _add_small(writer: Writer, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Rank 0's small files, as they are now."""
    text = json.dumps(state, indent=1, allow_nan=False)  # in the given order: that of the agents matters
    contents = {"state.json": text.encode()}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        contents[f"{name}.npy"] = buffer.getvalue()
    for name, raw in contents.items():
        writer.add(name, functools.partial(_write_bytes, raw=raw))


def _write_bytes(path: Path, raw: bytes) -> dict[str, Any]:
    return write_pieces(path, [raw])
