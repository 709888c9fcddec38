"""Ranks that tell each other small things before anything heavier than one TCP connection to rank 0 is known to work."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from mads.topology import open_store

POLL_S = 0.02


class Absent(RuntimeError):
    """Some ranks did not say what was expected of all.

    ranks: which.
    """

    def __init__(self, ranks: list[int], message: str):
        super().__init__(message)
        self.ranks = ranks


class Meeting:
    """A key-value store on rank 0, with JSON values.

    Args:
        address, port: of rank 0.
        serve: whether this process has to open the store; a launcher may have done it.
        wait_s: how long whoever is late is waited for, at each step.

    Raises:
        Absent: rank 0 cannot be reached, or cannot open its port.
    """

    def __init__(self, rank: int, world: int, address: str, port: int, serve: bool, wait_s: float):
        self.rank, self.world, self.wait_s = rank, world, wait_s
        if not serve:
            self._reach(address, port)
        try:
            self.store = open_store(address, port, serve, wait_s)
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            what = f"rank {rank} cannot {'listen on' if serve else 'talk to'} port {port} of {address} ({said})"
            raise Absent([rank], f"{what}; choose another MASTER_PORT") from error

    def _reach(self, address: str, port: int) -> None:
        """Wait until rank 0 listens."""
        deadline = time.monotonic() + self.wait_s
        while True:
            try:
                socket.create_connection((address, port), timeout=max(0.1, deadline - time.monotonic())).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Absent(
                        [0],
                        f"rank {self.rank} on {socket.gethostname()} cannot reach rank 0 at {address} port {port} for "
                        f"{self.wait_s:g} s ({error}); is rank 0 started, is the address one that this machine reaches "
                        "(MASTER_ADDR), does a firewall close the port (MASTER_PORT)?",
                    ) from error
            time.sleep(10 * POLL_S)

    def say(self, topic: str, value: Any) -> None:
        """Tell the others."""
        self.store.set(f"{topic}/{self.rank}", json.dumps(value))

    def hear(self, topic: str, ranks: list[int]) -> dict[int, Any]:
        """What these ranks said.

        Raises:
            Absent: with those who did not in time.
        """
        deadline, missing, heard = time.monotonic() + self.wait_s, list(ranks), {}
        while missing:
            for rank in list(missing):
                if self.store.check([f"{topic}/{rank}"]):
                    heard[rank] = json.loads(self.store.get(f"{topic}/{rank}"))
                    missing.remove(rank)
            if missing and time.monotonic() > deadline:
                raise Absent(missing, f"ranks {missing} said nothing about {topic} within {self.wait_s:g} s")
            if missing:
                time.sleep(POLL_S)
        return heard

    def hear_all(self, topic: str) -> list[Any]:
        """What every rank said, in order of ranks. For rank 0: the store answers one question after the other."""
        heard = self.hear(topic, list(range(self.world)))
        return [heard[rank] for rank in range(self.world)]
