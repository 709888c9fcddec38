"""The process in which run.py runs cases: reads one JSON line per case from a pipe and writes one JSON line per answer.

When the runner is gone, killed for example, the pipe ends: then this process ends too, with all of its ranks, at once if a case
is running.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import full_suites  # noqa: E402

ERROR_CHARACTERS = 6000
running = threading.Event()


def read_commands(descriptor: int, commands: queue.Queue) -> None:
    """Hand lines on; at the end of the pipe end what runs."""
    with os.fdopen(descriptor) as pipe:
        for line in pipe:
            running.set()
            commands.put(json.loads(line))
    if running.is_set():
        os.killpg(os.getpgid(0), signal.SIGKILL)
    commands.put(None)


def answer(suite: str, case: dict) -> dict:
    """Run one case."""
    try:
        values = importlib.import_module(suite).run_case(case)
        return {"status": "passed", "values": values or {}}
    except BaseException as error:  # pytest's own failures derive from BaseException
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return {"status": "failed", "error": traceback.format_exc()[-ERROR_CHARACTERS:]}


def main() -> None:
    command_read, answer_write, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    full_suites.prepare_path(folder)
    commands: queue.Queue = queue.Queue()
    threading.Thread(target=read_commands, args=(command_read, commands), daemon=True).start()
    used = set()
    while (command := commands.get()) is not None:
        used.add(command["suite"])
        line = json.dumps(answer(command["suite"], command["case"])).encode() + b"\n"
        running.clear()
        os.write(answer_write, line)
    for suite in used:
        getattr(sys.modules.get(suite), "clean", lambda: None)()
    if "harness" in sys.modules:
        sys.modules["harness"].close_pools()


if __name__ == "__main__":
    main()
