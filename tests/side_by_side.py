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
import threading
from collections.abc import Sequence
from pathlib import Path

RANKS = "dist"  # the folder whose tests are a part of their own
NO_TESTS = 5  # pytest's exit code when a selection leaves none
GRACE_S = 30.0  # what a part gets to end its processes


def commands(tests: Path, arguments: Sequence[str]) -> dict[str, list[str]]:
    """The command of each part; whatever lies in `tests` belongs to exactly one."""
    pytest = [sys.executable, "-u", "-m", "pytest", "-q", *arguments]
    cache = lambda part: ["-o", f"cache_dir=.pytest_cache/{part}"]  # noqa: E731
    return {
        "ranks": [*pytest, *cache("ranks"), str(tests / RANKS)],
        "other": [*pytest, *cache("other"), str(tests), f"--ignore={tests / RANKS}"],
    }


def run(tests: Path, arguments: Sequence[str]) -> int:
    """Run both parts to their end; returns 0 if both passed, else the exit code of the first that did not."""
    writing, processes, readers = threading.Lock(), {}, []
    for part, command in commands(tests, arguments).items():
        processes[part] = subprocess.Popen(
            command, cwd=tests.parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        readers.append(threading.Thread(target=_show, args=(part, processes[part].stdout, writing)))
        readers[-1].start()
    try:
        codes = {part: process.wait() for part, process in processes.items()}
    except BaseException:  # Ctrl-C went to the parts as well; a signal to this process alone did not
        _end(list(processes.values()))
        raise
    for reader in readers:
        reader.join()
    ran = {part: code for part, code in codes.items() if code != NO_TESTS} or codes
    print(", ".join(f"{part}: {'passed' if code == 0 else f'exit code {code}'}" for part, code in codes.items()), flush=True)
    return next((abs(code) for code in ran.values() if code), 0)


def _show(part: str, lines, writing: threading.Lock) -> None:
    """Print a part's lines as they come; from the first section of pytest's report on, all together at the end."""
    held = []
    for line in lines:
        held.append(f"{part}| {line if line.endswith(chr(10)) else line + chr(10)}")
        if not held[0].startswith(f"{part}| ====="):
            with writing:
                sys.stdout.write(held.pop())
                sys.stdout.flush()
    with writing:
        sys.stdout.writelines(held)
        sys.stdout.flush()


def _end(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # pytest ends its pools then
    for process in processes:
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()


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
