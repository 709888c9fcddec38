"""Which process on which machine: enough to end one from another without ever ending a wrong one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NamedTuple

from mads.launch.processes import PARENT


class Identity(NamedTuple):
    """born: when the process began, in the kernel's ticks: its number may be given to another one later.

    space: the machine since it was booted, and what of its processes is seen there (containers); "" where that is not known, and
    of a worker that `mads train` has started, which ends it itself.
    """

    space: str
    pid: int
    born: str

    @classmethod
    def own(cls) -> Identity:
        """Of this process."""
        return cls("" if PARENT in os.environ else _space(), os.getpid(), _born(os.getpid()))


def end_process(identity: Identity) -> bool:
    """Kill a process if it is on this machine and still the same; returns whether it was."""
    if not identity.space or identity.space != _space() or not identity.born or identity.born != _born(identity.pid):
        return False
    try:
        os.kill(identity.pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def _space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
