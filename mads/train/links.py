"""Connections between the watchdogs of a run: every rank to rank 0, apart from all process groups, which block when a rank hangs.

A connection also tells at once that a process has ended, however it did: the operating system closes it.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from typing import Any

from mads import collectives
from mads.config.compose import ConfigError
from mads.console.exchange import raise_together
from mads.topology import Topology

MEET_S = 60.0  # for all ranks to connect
HELLO_S = 5.0  # for one connection to say whose it is
MOST_BYTES = 1 << 16  # unsent to a process that does not read; further messages are dropped
LOOPBACK = ("localhost", "::1")


class Link:
    """JSON objects, a line each, over a connected TCP socket. Neither sending nor receiving waits."""

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.closed = connection, False
        self._arrived, self._unsent = b"", b""

    def send(self, message: dict[str, Any]) -> None:
        """Hand over a message; lost if the other side is gone or has long not read."""
        if len(self._unsent) < MOST_BYTES:
            self._unsent += json.dumps(message).encode() + b"\n"
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # `receive` finds out, after what has still arrived
            self._unsent = b""

    def receive(self) -> list[dict[str, Any]]:
        """What has arrived, oldest first; afterwards `closed` says whether nothing more will."""
        while not self.closed:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._arrived += data
            self.closed = not data
        *lines, self._arrived = self._arrived.split(b"\n")
        return [json.loads(line) for line in lines]


def connect_to_first(topology: Topology, host: str) -> dict[int, Link]:
    """Collective: a link from every rank to rank 0. Returns rank -> link: on rank 0 those of all others, elsewhere that of 0.

    Args:
        host: where rank 0 is reached.

    Raises:
        ConfigError: on a rank that could not connect, RankFailedError on the others.
    """
    if topology.world_size == 1:
        return {}
    listener, links, error, told = None, {}, None, None
    if topology.rank == 0:
        try:
            listener = _listen(host)
            told = [listener.getsockname()[1], secrets.token_hex(16)]
        except OSError as caught:
            error = caught
    told = collectives.broadcast_json(told, topology.group("control"))
    try:
        if topology.rank == 0 and listener is not None:
            links = _accept(listener, told[1], topology.world_size)
        elif topology.rank > 0 and told is not None:
            links = {0: _join(host, told[0], f"{told[1]} {topology.rank}\n")}
    except OSError as caught:
        error = caught
    finally:
        if listener is not None:
            listener.close()
    if error is not None:
        error = ConfigError(
            f"the watchdog of rank {topology.rank} has no connection with rank 0 at {host}: {error}; let the nodes reach each "
            "other by TCP, or train without it: parallel.hang_timeout_s=null"
        )
    raise_together(error, topology, "connecting the watchdogs")
    return links


def _listen(host: str) -> socket.socket:
    """On this machine alone if all ranks are here, else on every address: nodes may reach this one by another than it knows."""
    if host in LOOPBACK or host.startswith("127."):
        family = socket.AF_INET6 if host == "::1" else socket.AF_INET
        return socket.create_server((host, 0), family=family, backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def _join(host: str, port: int, hello: str) -> Link:
    connection = socket.create_connection((host, port), timeout=MEET_S)
    connection.sendall(hello.encode())
    return Link(connection)


def _accept(listener: socket.socket, secret: str, world: int) -> dict[int, Link]:
    """Wait for all other ranks. Whoever does not know the secret is no rank.

    Raises:
        OSError: naming the ranks that did not come.
    """
    links: dict[int, Link] = {}
    deadline = time.monotonic() + MEET_S
    while len(links) < world - 1:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            missing = [rank for rank in range(1, world) if rank not in links]
            raise OSError(f"ranks {missing[:16]} have not connected within {MEET_S:g} s") from None
        rank = _rank_of(connection, secret)
        if rank is None or not 0 < rank < world:
            connection.close()
        else:
            links[rank] = Link(connection)
    return links


def _rank_of(connection: socket.socket, secret: str) -> int | None:
    """The rank that a new connection names."""
    connection.settimeout(HELLO_S)
    hello = b""
    try:
        while not hello.endswith(b"\n") and len(hello) < 100:
            data = connection.recv(100)
            if not data:
                return None
            hello += data
    except OSError:
        return None
    word, _, rank = hello.decode(errors="replace").strip().partition(" ")
    return int(rank) if secrets.compare_digest(word.encode(), secret.encode()) and rank.isdecimal() else None
