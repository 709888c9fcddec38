"""The background half of a save. Every rank's thread writes its own files and leaves a part file that vouches for them; rank 0's
thread waits for all parts, checks them and publishes the checkpoint. Threads speak through files only: process groups are not
safe to use beside the training step.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mads.checkpoint.manifest import CheckpointError, Keep, flush, prune, publish, write_text
from mads.checkpoint.tensors import Item

POLL_S = 0.02
File = Callable[[Path], dict[str, Any]]  # writes a file, returns its size and SHA-256


def part_name(rank: int) -> str:
    """File in which a rank vouches for what it wrote."""
    return f"part-{rank:05d}.json"


def _failed_name(rank: int) -> str:
    return f"failed-{rank:05d}"


class Writer(threading.Thread):
    """Writes the files of one rank in the order in which they are added.

    Args:
        folder: the temporary folder of the checkpoint, which all ranks see.
        bounded: hold at most one file that waits to be written, so that memory stays small (`add` then blocks); else any number.
        then: what follows when the part file is there, on rank 0: `Publication`.

    Attributes, to be read after it has ended:
        error: why this rank could not write, or None.
        abandoned: why the checkpoint was not published although this rank wrote its files, or None.
        seconds: from the start to the end.
    """

    def __init__(self, folder: Path, rank: int, bounded: bool = False, then: Callable[[], None] | None = None):
        super().__init__(name=f"checkpoint writer of rank {rank}")  # not a daemon: a process that ends lets it finish
        self.folder, self.rank = folder, rank
        self.error: str | None = None
        self.abandoned: str | None = None
        self.seconds = 0.0
        self._then = then
        self._cancelled = False
        self._begun: list[str] = []
        self._files: dict[str, dict] = {}
        self._items: list[Item] = []
        self._queue: queue.Queue = queue.Queue(maxsize=1 if bounded else 0)

    def add(self, name: str, write: File, items: list[Item] | None = None) -> None:
        """Have `write` make file `name`, which holds the given tensors."""
        self._queue.put((name, write, items or []))

    def complete(self) -> None:
        """Nothing more is added."""
        self._queue.put(None)

    def cancel(self) -> None:
        """The save has failed elsewhere: end without a part file. The rest of the queue is not written."""
        self._cancelled = True
        if self.is_alive():
            self._queue.put(None)
            self.join()

    def run(self) -> None:
        start = time.perf_counter()
        while (task := self._queue.get()) is not None:  # emptied even after an error: the thread that adds must not wait
            if self.error is None and not self._cancelled:
                self.error = attempt(self._write, *task)
        if not self._cancelled:
            self.error = attempt(self._leave_part) if self.error is None else self.error
            if self.error is not None:
                self._leave_error()
            if self._then is not None:
                self.abandoned = attempt(self._then)
        self.seconds = time.perf_counter() - start

    @property
    def written(self) -> int:
        """Files so far."""
        return len(self._files)

    def _write(self, name: str, write: File, items: list[Item]) -> None:
        self._begun.append(name)
        self._files[name] = write(self.folder / name)
        self._items += items

    def _leave_part(self) -> None:
        self._put_part({"rank": self.rank, "files": self._files, "tensors": self._items})

    def _put_part(self, part: dict) -> None:
        """Under a name that nobody looks for first: a part is there whole or not at all."""
        temporary = self.folder / f"{part_name(self.rank)}.tmp"
        write_text(temporary, json.dumps(part))
        flush(temporary)
        os.replace(temporary, self.folder / part_name(self.rank))

    def _leave_error(self) -> None:
        for name in self._begun:
            (self.folder / name).unlink(missing_ok=True)  # makes room for the word about it on a full disk
        if attempt(self._put_part, {"rank": self.rank, "error": self.error}) is not None:
            attempt((self.folder / _failed_name(self.rank)).touch)  # an empty file needs no room


class Publication:
    """What rank 0 does after its own files are written.

    Args:
        ranks: that write a part.
        expected: every tensor of the model, each of which must be in exactly one file.
        limit_s: the longest time without a new part.
        keep: of `prune`.

    Attributes: `bytes`, of the whole checkpoint, when it is published; `there`, the parts so far.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        step: int,
        ranks: int,
        expected: set[Item],
        keep: Keep,
        limit_s: float,
    ):
        self._root, self._folder, self._step = root, folder, step
        self._ranks, self._expected, self._keep = ranks, expected, keep
        self.limit_s = limit_s
        self.bytes = self.there = 0

    def __call__(self) -> None:
        """Raises: CheckpointError, naming ranks and what went wrong; the temporary folder is gone then."""
        try:
            parts = self._wait()
            files = self._check(parts)
            for path in self._folder.glob("part-*"):
                path.unlink()
            publish(self._root, self._folder, self._step, files)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)  # on a full disk the rest would be in everyone's way
            raise
        self.bytes = sum(entry["bytes"] for entry in files.values())
        prune(self._root, self._keep)

    def _wait(self) -> list[dict]:
        """All parts, in rank order."""
        there: set[str] = set()
        last = time.monotonic()
        while True:
            # Listed, not asked for by name: a network file system remembers for a while that a name was not there.
            names = {entry.name for entry in os.scandir(self._folder)}
            found = {n for rank in range(self._ranks) for n in (part_name(rank), _failed_name(rank)) if n in names}
            if len(found) > len(there):
                there, last = found, time.monotonic()
                self.there = len(there)
            if len(there) >= self._ranks:
                return [self._read(rank, there) for rank in range(self._ranks)]
            if time.monotonic() - last > self.limit_s:
                missing = [r for r in range(self._ranks) if part_name(r) not in there and _failed_name(r) not in there]
                raise CheckpointError(f"ranks {missing} have not written their files {self.limit_s:g} s after the last other one")
            time.sleep(POLL_S)

    def _read(self, rank: int, there: set[str]) -> dict:
        if part_name(rank) not in there:
            return {"rank": rank, "error": "it could not even write what went wrong; is the disk full?"}
        return json.loads((self._folder / part_name(rank)).read_text())

    def _check(self, parts: list[dict]) -> dict[str, dict]:
        """File -> size and hash of all parts together."""
        failed = {part["rank"]: part["error"] for part in parts if "error" in part}
        if failed:
            raise CheckpointError("; ".join(f"rank {rank}: {error}" for rank, error in failed.items()))
        files: dict[str, dict] = {}
        for part in parts:
            for name, entry in part["files"].items():
                size = (self._folder / name).stat().st_size
                if name in files or size != entry["bytes"]:
                    raise CheckpointError(f"rank {part['rank']}: {name} has {size} bytes or a namesake, not {entry['bytes']}")
                files[name] = entry
        held = Counter(tuple(item) for part in parts for item in part["tensors"])
        missing, surplus = sorted(self._expected - set(held)), sorted((held - Counter(self._expected)).elements())
        if missing or surplus:
            raise CheckpointError(f"the ranks' files lack {missing[:3]} and hold {surplus[:3]} too often, so they would not load")
        return files


def attempt(action, *arguments) -> str | None:
    """Run it; the error in words, to be told to other ranks, or None."""
    try:
        action(*arguments)
    except Exception as error:
        return str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
    return None
