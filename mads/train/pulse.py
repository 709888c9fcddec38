"""What this rank is at, as its watchdog tells the others: the last step, the phase, and a count of its progress."""

from __future__ import annotations

from contextlib import contextmanager


class Pulse:
    """Written by the main thread, read by the watchdog's (mads.train.watchdog); an int more is all that progress costs.

    Attributes:
        step: optimizer steps taken so far.
        phase: what the main thread is at.
        count: grows with every piece of work that is done: a micro-batch, a file, a tensor. While it does, nothing hangs.
        warm: this process has taken a step: libraries are loaded, the model is built, kernels are compiled.
    """

    def __init__(self):
        self.step, self.phase, self.count, self.warm = 0, "start", 0, False

    def beat(self) -> None:
        """Something was done. To be called at least once in parallel.hang_timeout_s, main thread only."""
        self.count += 1

    def at(self, step: int) -> None:
        """The run stands at a step, of a checkpoint."""
        self.step = step
        self.beat()

    def stepped(self, step: int) -> None:
        """A step was taken. Outside of all phases, which end in the loop from then on."""
        self.at(step)
        self.phase, self.warm = "loop", True

    @contextmanager
    def during(self, phase: str):
        """The block is a phase, inside of the one before. After an exception the phase stays: it is where things went wrong."""
        before, self.phase = self.phase, phase
        self.beat()
        yield
        self.phase = before
        self.beat()
