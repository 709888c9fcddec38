"""`mads doctor --preflight`: what a run needs of the machines it is started on, tried on every rank (docs/doctor.md)."""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mads.collectives import all_reduce_
from mads.doctor.facts import Fact, clock_findings, disk_findings, facts, named, version_findings
from mads.doctor.meeting import Absent, Meeting
from mads.topology import initialize_process_group, shut_down

SHARE = 1 / 6  # of the time limit: a network's folder may show a new file only after a while
LOOK_S = 0.05  # between two looks into the folder
ELEMENTS = 1 << 20  # float32 of the all-reduce: 4 MiB


@dataclass(frozen=True)
class Start:
    """This process's place, and where rank 0 is.

    serve: whether this process opens rank 0's port
    """

    rank: int
    local_rank: int
    world_size: int
    address: str
    port: int
    serve: bool


def preflight(run_dir: str, data_dir: str, checkpoint_bytes: int, start: Start, wait_s: float, say: Callable[[str], None]) -> int:
    """Check the machines of a job; every rank calls it. Rank 0 tells what was found.

    Args:
        run_dir: must be one folder for all ranks.
        data_dir: "": none yet.
        checkpoint_bytes: of one checkpoint.
        wait_s: time limit of each check.

    Returns:
        The exit code, equal on all ranks that met: 0 all is well, 1 something is not.
    """
    try:
        meeting = Meeting(start.rank, start.world_size, start.address, start.port, start.serve, wait_s)
        meeting.say("facts", facts(run_dir, data_dir, start.local_rank))
        lines, wrong = _lead(meeting, run_dir, checkpoint_bytes, say) if start.rank == 0 else _follow(meeting, run_dir)
    except Absent as error:
        print(f"mads doctor: {error}", file=sys.stderr, flush=True)
        return 1
    if start.rank == 0:
        for line in [*lines, *(f"wrong: {line}" for line in wrong)]:
            say(line)
        say(f"preflight: {len(wrong)} to mend" if wrong else "preflight: all is well")
        meeting.say("verdict", len(wrong))
        _last_words(meeting)
        return 1 if wrong else 0
    count = meeting.hear("verdict", [0])[0]
    meeting.say("end", True)
    return 1 if count else 0


def _last_words(meeting: Meeting) -> None:
    """Rank 0 serves the store: it leaves last."""
    try:
        meeting.hear("end", list(range(1, meeting.world)))
    except Absent:
        pass  # whoever has gone already has what it needs, or has said what failed


def _lead(meeting: Meeting, run_dir: str, checkpoint_bytes: int, say) -> tuple[list[str], list[str]]:
    """Rank 0: (what there is, what is wrong)."""
    try:
        all_facts = [Fact(**fact) for fact in meeting.hear_all("facts")]
    except Absent as error:
        meeting.say("go", "end")
        which = ", ".join(map(str, error.ranks))
        return [], [
            f"rank {which} of {meeting.world} did not come: it was not started, failed (see what it said), or cannot reach rank 0"
        ]
    meeting.say("go", "on")
    lines = [f"ranks: {meeting.world} on {len({f.host for f in all_facts})} machines"]
    wrong = [*version_findings(all_facts), *disk_findings(all_facts, checkpoint_bytes)]
    wrong += _lead_folder(meeting, run_dir, all_facts)
    offsets = _lead_clock(meeting)
    lines.append(f"clocks: within {max(map(abs, (o for o, _ in offsets)), default=0.0) * 1000:.1f} ms of rank 0's")
    wrong += clock_findings(offsets, all_facts)
    backends = ["gloo", "nccl"] if all(f.gpu for f in all_facts) else ["gloo"]
    meeting.say("backends", backends)
    for backend in backends:
        results = _gathered(meeting, f"{backend} result", _all_reduce(meeting, backend))
        failed = [(rank, text) for rank, text in results.items() if isinstance(text, str)]
        wrong += [f"all-reduce over {backend} fails on {named(rank, all_facts)}: {text}" for rank, text in failed[:4]]
        if not failed:
            lines.append(f"{backend}: all-reduce of {ELEMENTS * 4 >> 20} MiB in {max(results.values()) * 1000:.0f} ms")
    return lines, wrong


def _follow(meeting: Meeting, run_dir: str) -> tuple[list[str], list[str]]:
    """The other ranks answer rank 0, in its order."""
    if meeting.hear("go", [0])[0] == "end":
        return [], []
    name = meeting.hear("folder", [0])[0]
    meeting.say("saw", _leave_file(Path(run_dir), name, meeting.rank, meeting.wait_s * SHARE))
    meeting.hear(f"ask {meeting.rank}", [0])
    meeting.say("clock", time.time())
    meeting.hear("looked", [0])
    shutil.rmtree(Path(run_dir) / name, ignore_errors=True)
    for backend in meeting.hear("backends", [0])[0]:
        meeting.say(f"{backend} result", _all_reduce(meeting, backend))
    return [], []


# ---------------------------------------------------------------- a folder that all see


def _leave_file(run_dir: Path, name: str, rank: int, wait_s: float) -> str:
    """See rank 0's file and leave an own one; "" or what went wrong."""
    folder = run_dir / name
    try:
        deadline = time.monotonic() + wait_s
        while not (folder / "rank-0").is_file():
            if time.monotonic() > deadline:
                return f"does not see what rank 0 wrote into {run_dir.resolve()}"
            time.sleep(LOOK_S)
        (folder / f"rank-{rank}").write_text(name)
    except OSError as error:
        return f"cannot use {run_dir.resolve()}: {error.strerror}"
    return ""


def _lead_folder(meeting: Meeting, run_dir: str, all_facts: list[Fact]) -> Iterator[str]:
    name = f".preflight-{secrets.token_hex(8)}"
    folder = Path(run_dir) / name
    try:
        folder.mkdir(parents=True)
        (folder / "rank-0").write_text(name)
        own = ""
    except OSError as error:
        own = f"cannot write into {run_dir}: {error.strerror}"
    meeting.say("folder", name)
    meeting.say("saw", own)
    saw = meeting.hear_all("saw")
    blind = [rank for rank, text in enumerate(saw) if text]
    deadline = time.monotonic() + meeting.wait_s * SHARE
    unseen = [rank for rank in range(meeting.world) if rank not in blind]
    while not own and unseen and time.monotonic() < deadline:
        unseen = [rank for rank in unseen if not (folder / f"rank-{rank}").is_file()]
        if unseen:
            time.sleep(LOOK_S)
    for rank in blind[:4]:
        yield f"run_dir: {named(rank, all_facts)} {saw[rank]}; it must be one folder on storage that all machines see"
    for rank in unseen[:4] if not own else ():
        yield f"run_dir: rank 0 does not see what {named(rank, all_facts)} wrote into it"
    shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- clocks


def _lead_clock(meeting: Meeting) -> list[tuple[float, float]]:
    """Of every rank: (seconds that its clock is ahead of rank 0's, how far that may be off)."""
    offsets = [(0.0, 0.0)]
    for rank in range(1, meeting.world):
        asked = time.time()
        meeting.say(f"ask {rank}", True)
        theirs = meeting.hear("clock", [rank])[rank]
        answered = time.time()
        offsets.append((theirs - (asked + answered) / 2, (answered - asked) / 2))
    meeting.say("looked", True)
    return offsets


# ---------------------------------------------------------------- collectives


def _gathered(meeting: Meeting, topic: str, own: Any) -> dict[int, Any]:
    """Every rank's answer; a sentence for those that have none."""
    meeting.say(topic, own)
    try:
        return dict(enumerate(meeting.hear_all(topic)))
    except Absent as error:
        said = meeting.hear(topic, [r for r in range(meeting.world) if r not in error.ranks])
        return said | {rank: "no answer" for rank in error.ranks}


def _all_reduce(meeting: Meeting, backend: str) -> float | str:
    """Seconds of an all-reduce of ELEMENTS float32 over all ranks, after a first one that connects them; or what went wrong."""
    try:
        world = initialize_process_group(backend, meeting.wait_s, (meeting.store, meeting.rank, meeting.world))
        device = "cpu" if backend == "gloo" else torch.device("cuda", torch.cuda.current_device())
        for _ in range(2):
            ones = torch.full((ELEMENTS,), float(meeting.rank + 1), device=device)
            started = time.perf_counter()
            all_reduce_(ones, world)
            total = float(ones[-1])  # waits for the device
            seconds = time.perf_counter() - started
        shut_down()
    except RuntimeError as error:
        return str(error).splitlines()[0][:300]
    expected = meeting.world * (meeting.world + 1) / 2
    return seconds if total == expected else f"the sum is {total:g} and not {expected:g}"
