"""Who does which task of a preparation, over a folder that all of its processes see: markers of what is done, and claims.

    work/job.json        what is being prepared: another preparation is refused
    work/done/TASK       {"documents", "bytes"}: the task's results are in their places
    work/claims/TASK     who is at it, renewed every few seconds
    work/scratch/...     what a task has written so far; moved to its place when the task is done

Claims only save work: a task's results are a function of the input and the settings, and they appear by rename. So a task that
two processes do at the same time is done twice, and nothing else.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEARTBEAT_S = 2.0
STALE_S = 120.0  # a claim that is not renewed for so long has no owner any more


@dataclass
class Tally:
    """What a task has gone through so far: documents, and bytes of their text."""

    documents: int = 0
    bytes: int = 0

    def add(self, documents: int, size: int) -> None:
        """Count on. Only the task's own thread does."""
        self.documents += documents
        self.bytes += size


def _started(pid: int | str) -> str | None:
    """When a process of this machine began; None if there is none. With the id, it names a process for all time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def _machine() -> str:
    """Where process ids mean the same: a container has its own."""
    try:
        return f"{platform.node()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return platform.node()


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a name that no other process uses, then rename it."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """A JSON file's value, or None if it is not there (any more)."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # ValueError: a claim that is just being made
        return None


class Board:
    """The markers and claims of one preparation, as one process sees them."""

    def __init__(self, directory: Path):
        self.directory, self.work = directory, directory / "work"
        self._me = {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}
        self._seen: dict[str, tuple[int, float]] = {}  # claim -> its time stamp, and since when (our clock) it has that

    @property
    def is_open(self) -> bool:
        """False once the preparation is complete, or was removed."""
        return (self.work / "job.json").exists()

    def is_done(self, task: str) -> bool:
        return (self.work / "done" / task).exists()

    def done(self) -> set[str]:
        """Names of all tasks that are done."""
        return {name for name in _names(self.work / "done") if not name.endswith(".tmp")}

    def claims(self) -> set[str]:
        """Names of all tasks that someone is at."""
        return {name for name in _names(self.work / "claims") if not name.endswith(".tmp")}

    def tally(self, task: str) -> Tally:
        """How far a task is, or what it went through."""
        for folder in ("done", "claims"):
            if value := read_json(self.work / folder / task):
                return Tally(value.get("documents", 0), value.get("bytes", 0))
        return Tally()

    def claim(self, task: str) -> bool:
        """Try to take a task. An abandoned claim is taken over.

        Raises:
            FileNotFoundError: the preparation is over.
        """
        path = self.work / "claims" / task
        if path.exists() and self._is_abandoned(task, path):
            path.unlink(missing_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            json.dump(self._me, file)
        return True

    def _is_abandoned(self, task: str, path: Path) -> bool:
        try:
            stamp, owner = path.stat().st_mtime_ns, read_json(path)
        except FileNotFoundError:
            return False
        if owner and owner["machine"] == self._me["machine"] and owner["started"] is not None:
            if _started(owner["pid"]) != owner["started"]:
                shutil.rmtree(self._scratch(task, owner), ignore_errors=True)
                return True
        # Clocks of two machines differ: what counts is for how long by ours the claim has not changed.
        known, since = self._seen.get(task, (None, 0.0))
        if known != stamp:
            self._seen[task] = (stamp, time.monotonic())
            return False
        return time.monotonic() - since > STALE_S

    def _scratch(self, task: str, owner: dict[str, Any]) -> Path:
        machine = "".join(c if c.isalnum() else "-" for c in owner["machine"])
        return self.work / "scratch" / f"{task}-{machine}-{owner['pid']}"

    def start(self, task: str) -> Path:
        """A new empty folder for what the task writes."""
        scratch = self._scratch(task, self._me)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        return scratch

    def renew(self, task: str, tally: Tally) -> None:
        """Tell the others that the task's owner is alive, and how far it is."""
        write_json(self.work / "claims" / task, self._me | {"documents": tally.documents, "bytes": tally.bytes})

    def finish(self, task: str, scratch: Path, tally: Tally) -> None:
        """Move every file below `scratch` to the same place below the directory, the manifest last, and mark the task as done.

        Raises:
            FileNotFoundError: the preparation is over.
        """
        files = sorted((p for p in scratch.rglob("*") if p.is_file()), key=lambda p: (p.name == "manifest.json", p))
        for path in files:
            target = self.directory / path.relative_to(scratch)
            if not target.is_relative_to(self.work):  # a folder of `work` is not made again after the end
                target.parent.mkdir(parents=True, exist_ok=True)
            _flush(path)
            os.replace(path, target)
        write_json(self.work / "done" / task, {"documents": tally.documents, "bytes": tally.bytes})
        (self.work / "claims" / task).unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)

    def release(self, task: str, scratch: Path | None = None) -> None:
        """Give a task back that was not done."""
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        (self.work / "claims" / task).unlink(missing_ok=True)

    def others(self) -> list[str]:
        """Claims whose owners live, as far as can be told."""
        return sorted(task for task in self.claims() if not self._is_abandoned(task, self.work / "claims" / task))

    @contextmanager
    def present(self) -> Iterator[None]:
        """Show that a process is here while it is between two tasks."""
        name = f"process-{uuid.uuid4().hex}"
        self.claim(name)
        try:
            with self.heartbeat(name, Tally()):
                yield
        finally:
            self.release(name)

    @contextmanager
    def heartbeat(self, task: str, tally: Tally) -> Iterator[None]:
        """Renew a claim during the block."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_S):
                try:
                    self.renew(task, tally)
                except OSError:  # the folder went: the task itself will notice
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def close(self) -> None:
        """Remove the work folder. Its name goes first, so that no process finds half of it."""
        aside = self.work.with_name("work.finished")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            os.rename(self.work, aside)
        except FileNotFoundError:
            return
        shutil.rmtree(aside, ignore_errors=True)


FOLDERS = ("done", "claims", "scratch", "references", "survey", "plan", "sample", "fit", "shards")


def open_board(directory: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Make the work folder of a preparation unless it is there. `record` is what job.json shall hold; returns what it holds."""
    work = directory / "work"
    directory.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        (work / folder).mkdir(parents=True, exist_ok=True)
    path = work / "job.json"
    if not path.exists():
        temporary = work / f"job.json.{uuid.uuid4().hex}.tmp"
        temporary.write_text(json.dumps(record, indent=1))
        try:
            os.link(temporary, path)  # unlike a rename, it does not replace what another process has just made
        except FileExistsError:
            pass
        temporary.unlink()
    return json.loads(path.read_text())


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
