"""A thread beside the training of every rank: when a rank hangs or dies, the run ends everywhere, and every rank says whose fault
it was (docs/faults.md).

Every thread reports its rank's pulse to rank 0's over a link of its own (mads.train.links). Rank 0 judges (mads.train.verdict)
and tells all; the others judge only whether rank 0 is there. A main thread that is blocked in a collective cannot be interrupted,
so the thread ends its process with os._exit.
"""

from __future__ import annotations

import faulthandler
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mads.launch import exits
from mads.launch.identity import Identity, end_process
from mads.topology import Topology
from mads.train.links import connect_to_first
from mads.train.monitor import Monitor
from mads.train.pulse import Pulse
from mads.train.verdict import Report, culprits, hung_for, overview, sentence, silent_ranks

ORDERLY = (exits.DONE, exits.PREEMPTED)
SETTLE_S = 0.5  # from the first lost connection to the verdict: the ranks of a node end together, and are named together
GATHER_S = 0.1  # between two looks at what has arrived: waking up costs more than reading
LEAVE_S = 10.0  # for the ranks to leave by themselves after one that has failed
LINGER_S = 2.0  # for news of other ranks, before a rank takes an error for its own
LAST_S = 10.0  # for last words, and for a checkpoint that is nearly written
QUIET_BEATS = 3  # reports that a rank misses before it is doubted


class Clock:
    """Seconds that this process has lived through: while it is stopped (a suspended job), or starved, nobody else is late."""

    def __init__(self, most: float, source: Callable[[], float] = time.monotonic):
        self._most, self._source = most, source
        self._last, self._value = source(), 0.0

    def __call__(self) -> float:
        now = self._source()
        self._value += min(now - self._last, self._most)
        self._last = now
        return self._value


class NoWatchdog:
    """Of a run with parallel.hang_timeout_s=null."""

    def leave(self, code: int, why: str = "") -> None:
        """See Watchdog."""

    def linger(self) -> None:
        """See Watchdog."""

    def finish_first(self, work: Callable[[float], None]) -> None:
        """See Watchdog."""


class Watchdog(threading.Thread):
    """Collective to make; runs from then on. Its methods are called by the main thread.

    Args:
        pulse: this rank's.
        limit_s: the run hangs when no rank has made progress for so long.
        start_limit_s: the same, until every rank has taken a step.
        host: where rank 0 is reached.
        run_dir: heartbeat.json is kept there, by rank 0.

    Raises:
        ConfigError, RankFailedError: the ranks cannot reach each other.
    """

    def __init__(self, pulse: Pulse, limit_s: float, start_limit_s: float, topology: Topology, host: str, run_dir: Path):
        super().__init__(name="watchdog", daemon=True)
        self.rank, self.world = topology.rank, topology.world_size
        self._pulse, self._limit, self._start_limit = pulse, limit_s, start_limit_s
        # Rank 0 reads one report of each rank in it: at a thousand ranks a few hundred a second.
        self.beat_s = min(max(0.2, limit_s / 20), max(1.0, self.world / 200))
        self._main = threading.main_thread().ident
        self._clock = Clock(QUIET_BEATS * self.beat_s)
        self._links = connect_to_first(topology, host)
        self._reports = {rank: Report(heard=self._clock()) for rank in (self.rank, *self._links)}
        self._left: dict[int, dict[str, Any]] = {}  # rank -> its last message
        self._identities: dict[int, Identity] = {}
        self._failed: list[int] = []  # of those, the ones with another code than ORDERLY
        self._gone: set[int] = set()  # ended without one
        self._since: dict[str, float] = {}  # what has happened -> when
        self._count, self._changed = -1, 0.0
        self._lock = threading.Lock()  # links, and `_own_end`
        self._own_end: int | None = None
        self._failing, self._leaving = False, threading.Event()
        self._finish: Callable[[float], None] = lambda seconds: None
        self._monitor = Monitor(run_dir, limit_s) if self.rank == 0 else None
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        for rank, link in self._links.items():
            self._selector.register(link.socket, selectors.EVENT_READ, rank)
            link.send({"identity": list(Identity.own())})
        self.start()

    # ------------------------------------------------------------ for the main thread

    def leave(self, code: int, why: str = "") -> None:
        """This rank is about to end with an exit code; the others learn that it is not lost, and after a failure why. Nobody is
        judged here any more."""
        with self._lock:
            ending, self._own_end = self._own_end is not None, code
            last = Report.of(self._pulse, 0.0, self._main, 0.0).message()
            for link in self._links.values():
                link.send({"left": code, "why": why[:500], **last})
        self._leaving.set()
        self._wake.send(b".")
        self.join(None if ending else self.beat_s)  # a verdict ends the process from there
        for link in self._links.values():
            link.receive()  # TCP takes back the last message from an end that closes without having read
        if self._monitor is not None:
            self._monitor.show(self._reports, self._left, self._clock(), f"exit code {code}{f': {why}' if why else ''}")

    def linger(self) -> None:
        """An exception has come: wait for news of other ranks. If one of them is lost, that is the cause, and this process ends
        here with the verdict."""
        self._failing = True
        start = time.monotonic()
        while self._links and (passed := time.monotonic() - start) < self._limit + LAST_S:
            lost = self._gone or self._failed or self._own_end is not None
            if passed > LINGER_S and not lost and not self._doubtful():
                return
            time.sleep(0.05)

    def finish_first(self, work: Callable[[float], None]) -> None:
        """Give `work(seconds)` that long before a verdict ends this process."""
        self._finish = work

    # ------------------------------------------------------------ the thread

    def run(self) -> None:
        due = 0.0
        while self._own_end is None:
            events = self._selector.select(0.05 if self._urgent else self.beat_s)
            now = self._clock()
            for key, _ in events:
                if key.data is not None:
                    self._hear(key.data, now)
            if beat := now >= due:
                due = now + 0.9 * self.beat_s  # `select` may return a little early
                self._tell(now)
            if beat or self._urgent:
                self._judge(now)
            if not self._urgent:
                self._leaving.wait(GATHER_S)

    @property
    def _urgent(self) -> bool:
        """A rank is lost, or this one may be about to: look often. Else every beat is enough, for a look takes all reports."""
        return bool(self._gone or self._failed or self._failing)

    def _report(self) -> Report:
        now = self._clock()
        if self._pulse.count != self._count:
            self._count, self._changed = self._pulse.count, now
        return Report.of(self._pulse, now - self._changed, self._main, now)

    def _tell(self, now: float) -> None:
        own = self._reports[self.rank] = self._report()
        with self._lock:
            for link in self._links.values():
                link.send(own.message())
        if self._monitor is not None:
            self._monitor.show(self._reports, self._left, now)

    def _hear(self, rank: int, now: float) -> None:
        link = self._links[rank]
        for message in link.receive():
            if "verdict" in message:
                self._end(message)
            elif "identity" in message:
                self._identities[rank] = Identity(*message["identity"])
            else:
                code, why = message.pop("left", None), message.pop("why", "")
                self._reports[rank] = Report(**message, heard=now)
                if code is not None:
                    self._left[rank] = {"code": code, "why": why}
                    if code not in ORDERLY:
                        self._failed.append(rank)
        if link.closed:
            self._selector.unregister(link.socket)
            if rank not in self._left:
                self._gone.add(rank)

    # ------------------------------------------------------------ judging

    def _judge(self, now: float) -> None:
        if self._own_end is not None:
            return
        if self._gone and self._passed("gone", SETTLE_S, now):
            dead = {rank: self._reports[rank] for rank in sorted(self._gone)}
            self._end_all(sentence("dead", dead, now, self._pulse.step), exits.HUNG)
        if self._failed and self._passed("failed", 0.0 if self._failing else LEAVE_S, now):
            rank = self._failed[0]
            end = self._left[rank]
            why = f": {end['why']}" if end["why"] else ""
            self._end_all(f"rank {rank} left with exit code {end['code']} {self._reports[rank].where}{why}", end["code"])
        if self._gone or self._failed:
            return
        here = {rank: report for rank, report in self._reports.items() if rank not in self._left}
        limit = self._limit if all(report.warm for report in here.values()) else self._start_limit
        first = here.get(0)
        if self.rank == 0 or first is None:  # where rank 0 has left in order, this rank is alone
            if hung_for(here, now) >= limit:
                self._end_hung(here, here, now, limit)
        elif first.silent(now) >= limit / 2 and (self._failing or hung_for(here, now) >= limit):
            self._end_hung({0: first}, here, now, limit)  # where its watchdog answers, it judges

    def _passed(self, what: str, seconds: float, now: float) -> bool:
        """Whether this is so for that long."""
        return now - self._since.setdefault(what, now) >= seconds

    def _doubtful(self) -> bool:
        """Whether a rank has missed reports, so that a verdict may come."""
        here = {rank: report for rank, report in self._reports.items() if rank not in self._left}
        return bool(silent_ranks(here, self._reports[self.rank].heard, QUIET_BEATS * self.beat_s))

    # ------------------------------------------------------------ the end

    def _end_hung(self, suspects: dict[int, Report], here: dict[int, Report], now: float, limit: float) -> None:
        kind, ranks = culprits(suspects, now, limit)
        kill = {str(rank): self._identities[rank] for rank in ranks if rank in self._identities} if kind == "silent" else {}
        text = sentence(kind, {rank: suspects[rank] for rank in ranks}, now, self._pulse.step)
        self._end_all(text, exits.HUNG, ranks, kill, overview(here))

    def _end_all(self, text: str, code: int, guilty=(), kill=MappingProxyType({}), more: Sequence[str] = ()) -> None:
        verdict = {"verdict": text, "code": code, "guilty": list(guilty), "kill": dict(kill)}
        with self._lock:
            for link in self._links.values():
                link.send(verdict)
        self._end(verdict, more)

    def _end(self, verdict: dict[str, Any], more: Sequence[str] = ()) -> None:
        """Leave. Nothing here may block for long: a file system that hangs can be what has happened."""
        with self._lock:
            if self._own_end is not None:  # the main thread is about to leave with a code of its own
                return
            self._own_end = verdict["code"]
        # After a failure rank 0 speaks for the run; when a rank is lost, it may be rank 0.
        speaker = "mads train" if self.rank == 0 or verdict["code"] == exits.HUNG else f"rank {self.rank}"
        lines = [f"{speaker}: {verdict['verdict']}; rank {self.rank} ends with exit code {verdict['code']}", *more]
        words = threading.Thread(target=self._last_words, args=(lines, verdict), daemon=True)
        words.start()
        words.join(LAST_S)
        if verdict["kill"] and self.rank > 0:
            time.sleep(2 * self.beat_s)  # if rank 0 is silent, the other ranks find that out by themselves
        for identity in verdict["kill"].values():
            end_process(Identity(*identity))
        os._exit(verdict["code"])

    def _last_words(self, lines: list[str], verdict: dict[str, Any]) -> None:
        print("\n".join(lines), file=sys.stderr, flush=True)
        if self.rank in verdict["guilty"]:
            print(f"threads of rank {self.rank}, the main thread last:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stdout.flush()
        if self._monitor is not None:
            self._monitor.show(self._reports, self._left, self._clock(), verdict["verdict"])
        self._finish(LAST_S / 2)
