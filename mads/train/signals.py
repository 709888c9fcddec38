"""Preemption: a signal to any rank makes all ranks finish the step, save, and leave with one exit code (docs/faults.md).

Nothing here imports torch: handlers must be in place before the seconds in which it is loaded.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from mads.launch.processes import PREEMPTION_SIGNALS, launched


class Notice:
    """Whether this process was told to make an end. The handlers only take a note: the step in progress is finished.

    A signal that comes again is the same wish: Slurm sends SIGUSR1 and then SIGTERM, launchers repeat what they got. Only where
    nobody stands between the user and this process, a second one ends it at once.
    """

    def __init__(self):
        self.received: list[int] = []
        self._at_once = False

    @property
    def name(self) -> str:
        """Of the first signal; "" while there is none."""
        return signal.Signals(self.received[0]).name if self.received else ""

    def listen(self) -> Notice:
        """Take signals from now on; those that a parent has held back arrive here. Main thread only."""
        self._at_once = not launched()
        for number in PREEMPTION_SIGNALS:
            signal.signal(number, self._take)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PREEMPTION_SIGNALS)
        return self

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if self._at_once and len(self.received) > 1:
            os._exit(128 + number)


class Preemption:
    """The ranks' agreement on when to stop: no rank may leave a step that another one begins.

    `ask` begins a sum over all ranks before a step, which travels while the step is computed; `answer` takes it afterwards. So a
    signal costs at most one step more, and the step does not wait. `agreed` asks and waits, for borders where nothing else runs.

    Args:
        notice: this process's; None: never asked to stop.
        start_sum: begins to sum an int over all ranks; returns a function that waits for the total.
    """

    def __init__(self, notice: Notice | None, start_sum):
        self._notice, self._start_sum = notice, start_sum
        self._total = None
        self.stopping = False

    def ask(self) -> None:
        """Begin to find out whether a rank has had a signal up to now. Collective; followed by `answer`."""
        self._total = self._start_sum(int(bool(self._notice and self._notice.received)))

    def answer(self) -> bool:
        """The same on all ranks: whether to stop, by what they knew at `ask`."""
        self.stopping = self.stopping or self._total() > 0
        return self.stopping

    def agreed(self) -> bool:
        """`ask` and `answer` at once. Collective."""
        self.ask()
        return self.answer()
