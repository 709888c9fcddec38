"""`make test`: two pytest processes side by side, the distributed tests and all others, with one log and one exit code.

A distributed test spends much of its time waiting for ranks to meet, most others keep one core busy: together they end much
sooner than one after the other. The parts share nothing: pytest numbers its temporary folders under a lock, process pools meet
over files, real runs take free ports outside the range from which the system draws, and each part has a cache of its own.

Lines come as they are written, with the name of their part before them; what pytest says at the end (failures, summary) is held
until the part has ended, so that it stands together. Arguments go to both parts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RANKS = "dist"  # the folder whose tests are a part of their own
NO_TESTS = 5  # pytest's exit code when a selection leaves none
GRACE_S = 30.0  # what a part gets to end its processes
POLL_S = 0.2


def commands(tests: Path, arguments: Sequence[str]) -> dict[str, list[str]]:
    """The command of each part; whatever lies in `tests` belongs to exactly one."""
    pytest = [sys.executable, "-u", "-m", "pytest", "-q", *arguments]
    cache = lambda part: ["-o", f"cache_dir=.pytest_cache/{part}"]  # noqa: E731
    return {
        "ranks": [*pytest, *cache("ranks"), str(tests / RANKS)],
        "other": [*pytest, *cache("other"), str(tests), f"--ignore={tests / RANKS}"],
    }


class Part:
    """A pytest process whose output goes to a file: a pipe would stay open as long as a child that outlives it."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, log: Path):
        self.name, self.rest, self.held = name, "", []
        with open(log, "wb") as out:
            self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        self.lines = open(log, encoding="utf-8", errors="replace")

    def show(self) -> bool:
        """Print what is new, but hold what follows the first header of pytest's report; returns whether the process has ended."""
        ended = self.process.poll() is not None  # before reading, so that nothing is written after the last look
        *lines, self.rest = (self.rest + self.lines.read()).split("\n")
        self.held += lines + ([self.rest] if ended and self.rest else [])
        report = next((i for i, line in enumerate(self.held) if line.startswith("=====")), len(self.held))
        now, self.held = (self.held, []) if ended else (self.held[:report], self.held[report:])
        for line in now:
            print(f"{self.name}| {line}", flush=True)
        return ended


def run(tests: Path, arguments: Sequence[str]) -> int:
    """Run both parts to their end; returns 0 if both passed, else the exit code of the first that did not."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [Part(n, c, tests.parent, Path(folder) / n) for n, c in commands(tests, arguments).items()]
        try:
            running = parts
            while running := [part for part in running if not part.show()]:
                time.sleep(POLL_S)
        except BaseException:  # Ctrl-C went to the parts as well; a signal to this process alone did not
            _end([part.process for part in parts])
            for part in parts:
                part.show()
            raise
    codes = {part.name: part.process.returncode for part in parts}
    words = {0: "passed", NO_TESTS: "no test"}
    print(", ".join(f"{name}: {words.get(code, f'exit code {code}')}" for name, code in codes.items()), flush=True)
    ran = [code for code in codes.values() if code != NO_TESTS] or [NO_TESTS]
    return next((abs(code) for code in ran if code), 0)


def _end(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # pytest ends its pools then
    for process in processes:
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code; 130 after Ctrl-C."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(Path(__file__).resolve().parent, arguments)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
