"""Signals that ask for an end: noted, agreed upon by all ranks, obeyed at once only where a user stands before the process."""

import os
import signal
import subprocess
import sys

import pytest

from mads.train.signals import Notice, Preemption

SCRIPT = """
import os, signal
from mads.train.signals import Notice
notice = Notice().listen()
for name in {names}:
    os.kill(os.getpid(), signal.Signals[name])
print(notice.name, len(notice.received), flush=True)
"""


def told(names, **variables):
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "MADS_PARENT")}
    command = [sys.executable, "-c", SCRIPT.format(names=names)]
    return subprocess.run(command, env=kept | variables, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_is_noted(name):
    assert told([name]).stdout.split() == [name, "1"]


def test_a_second_signal_ends_a_process_of_the_user_and_no_launched_rank():
    assert told(["SIGUSR1", "SIGTERM"]).returncode == 128 + signal.SIGTERM
    assert told(["SIGUSR1", "SIGTERM"], RANK="0").stdout.split() == ["SIGUSR1", "2"]


def test_a_signal_that_came_before_the_handlers_is_not_lost():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        child = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGUSR1)\n" + SCRIPT.format(names=[])]
        done = subprocess.run(child, env=os.environ | {"RANK": "0"}, capture_output=True, text=True, timeout=60)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert done.stdout.split() == ["SIGUSR1", "1"], done.stderr


def test_ranks_stop_by_what_all_knew_when_they_asked():
    others = [0]
    notice = Notice()
    preemption = Preemption(notice, lambda value: lambda total=value + others[0]: total)
    preemption.ask()
    notice.received.append(signal.SIGTERM)  # after the question: the next one tells
    assert not preemption.answer() and preemption.agreed() and preemption.stopping
    other = Preemption(None, lambda value: lambda total=value + others[0]: total)
    assert not other.agreed()
    others[0] = 1
    assert other.agreed()
