"""What the watchdog costs: its thread's processor time on rank 0 and elsewhere, and a beat of the training's.

    OMP_NUM_THREADS=1 python -m benchmarks.watchdog > table.md

Run from the repository root. The watchdog is a real one at the default limit; the other ranks are TCP connections of another
process, which sends their reports. The table: watchdog.md.
"""

from __future__ import annotations

import multiprocessing
import socket
import tempfile
import threading
import time
import timeit
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from mads.train.links import Link
from mads.train.pulse import Pulse
from mads.train.verdict import Report
from mads.train.watchdog import Watchdog

LIMIT_S, SECONDS = 600.0, 20.0
WORLDS = (2, 8, 64, 256, 1024)


def others(port: int, count: int, beat_s: float) -> None:
    """The ranks that a watchdog is linked to: a report of each every `beat_s`, spread over that time; they read what they get."""
    links = [Link(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
    message = Report(step=1234, phase="train", count=56789, warm=True).message()
    while True:
        for link in links:
            link.send(message)
            link.receive()
            time.sleep(0.9 * beat_s / count)


def cost(rank: int, world: int) -> tuple[float, float]:
    """(seconds between two beats, processor seconds of the watchdog's thread per second) of a rank of a world."""
    count, beat_s = (world - 1 if rank == 0 else 1), max(1.0, world / 200)
    with socket.create_server(("127.0.0.1", 0), backlog=world) as server:
        peer = multiprocessing.get_context("spawn").Process(
            target=others, args=(server.getsockname()[1], count, beat_s), daemon=True
        )
        peer.start()
        links = {other: Link(server.accept()[0]) for other in range(world) if other != rank and (rank == 0 or other == 0)}
    topology, pulse = SimpleNamespace(rank=rank, world_size=world), Pulse()
    with tempfile.TemporaryDirectory() as folder:
        with mock.patch("mads.train.watchdog.connect_to_first", lambda *_: links):
            watchdog = Watchdog(pulse, LIMIT_S, LIMIT_S, topology, "127.0.0.1", Path(folder))
        threading.Thread(target=lambda: [(pulse.beat(), time.sleep(0.05)) for _ in range(int(20 * SECONDS))], daemon=True).start()
        time.sleep(2)
        clock = time.pthread_getcpuclockid(watchdog.ident)
        before, start = time.clock_gettime(clock), time.monotonic()
        time.sleep(SECONDS)
        used, passed = time.clock_gettime(clock) - before, time.monotonic() - start
        watchdog.leave(0)
    peer.kill()
    assert watchdog.beat_s == beat_s
    return beat_s, used / passed


if __name__ == "__main__":
    pulse = Pulse()
    print(f"A beat of the main thread: {timeit.timeit(pulse.beat, number=10**6) * 1e3:.0f} ns.\n")
    print("| ranks | seconds between reports | rank 0: share of a core | another rank |\n|---|---|---|---|")
    for world in WORLDS:
        (beat_s, first), (_, other) = cost(0, world), cost(1, world)
        print(f"| {world} | {beat_s:.2g} | {first:.4%} | {other:.4%} |", flush=True)
