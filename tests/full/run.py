"""Runs everything exhaustive that is too long for `make test`, and can be stopped and started again.

    python tests/full/run.py                            # all suites: also `make test-full`
    python tests/full/run.py --suite mutant_runs        # one suite: also `make mutants`
    python tests/full/run.py --suite layout_matrix --filter 'zero=1' --limit 20
    python tests/full/run.py --list

A suite is a module in this folder with

    cases() -> list of dicts       JSON values; "world" says how many ranks a case takes, for the reader
    run_case(case) -> dict | None  measured numbers and words for the page; raises AssertionError when the case fails

and, if it wants,

    name_of(case) -> str           its name, unique in the suite
    group_of(case) -> str          the row of the page's table of largest numbers that it belongs to
    clean()                        called at the end
    LIMIT_S                        seconds for one case, else --limit-s
    ROWS = True                    the page lists every case with its words, or what the case gives as "rows" (dicts)

The first line of its docstring is the page's title.

Cases run one after the other in a process of their own, which is killed with all of its ranks when a case is over its time or
takes the process down; the next case gets a new one. Results are appended to .cache/full/<commit>-<hash of the sources>.jsonl as
they come. A later run with the same sources skips what has passed and repeats what has failed. At the end the pages,
benchmarks/full/<suite>.md, are written anew. Exit status 1 if any selected case failed.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import full_results as results  # noqa: E402
import full_suites as suites  # noqa: E402

GRACE_S = 20.0  # for the process to end by itself


class Worker:
    """The process that runs cases, and its pipes. All of its ranks belong to its process group."""

    def __init__(self, folder: Path, log: Path):
        command_read, self._commands = os.pipe()
        self._answers, answer_write = os.pipe()
        self._buffer = b""
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "full_worker.py"), str(command_read), str(answer_write), str(folder)],
                pass_fds=(command_read, answer_write),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        os.close(command_read)
        os.close(answer_write)

    def run(self, suite: str, case: dict, limit_s: float) -> dict:
        """The answer of a case: status, and values or error. The worker is gone if the status is `timeout` or `died`."""
        try:
            os.write(self._commands, json.dumps({"suite": suite, "case": case}).encode() + b"\n")
        except OSError:
            return self._gone("died", f"the process ended with status {self.process.wait()} before the case")
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return self._gone("timeout", f"not finished within {limit_s:g} s")
                piece = os.read(self._answers, 1 << 16)
                if not piece:
                    return self._gone("died", f"the process ended with status {self.process.wait()}")
                self._buffer += piece
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def _gone(self, status: str, error: str) -> dict:
        self.close(kill=True)
        return {"status": status, "error": error}

    def close(self, kill: bool = False) -> None:
        """End the process and its ranks; without `kill` suites clean up first."""
        if self._commands is None:
            return
        os.close(self._commands)  # its end of the pipe then says so
        self._commands = None
        try:
            self.process.wait(0 if kill else GRACE_S)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        os.close(self._answers)


def run_cases(todo: list, folder: Path, record: results.Record, limit_s: float, total: int, say) -> int:
    """Run (suite, name, case) triples; returns how many failed."""
    worker, failed = None, 0
    log = record.path.with_suffix(".log")
    try:
        for index, (suite, name, case) in enumerate(todo, total - len(todo) + 1):
            worker = worker or Worker(folder, log)
            begun = time.monotonic()
            answer = worker.run(suite.name, case, suite.limit_s or limit_s)
            seconds = time.monotonic() - begun
            record.add(suite.name, name, case, answer, seconds)
            failed += answer["status"] != "passed"
            if answer["status"] in ("timeout", "died"):
                worker = None
            note = ": " + answer["error"].strip().splitlines()[-1][:200] if answer["status"] != "passed" else ""
            note += "".join(f"; {what} {value:.3g}" for what, value in results.numbers(answer.get("values", {})).items())
            say(f"[{index}/{total}] {suite.name} {name}: {answer['status']} in {seconds:.1f} s, {failed} failed so far{note}")
    finally:
        if worker is not None:
            worker.close()
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", action="append", help="only this suite; may be given several times")
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    parser.add_argument("--limit", type=int, help="at most so many cases that have not passed yet")
    parser.add_argument("--limit-s", type=float, default=600.0, help="seconds for one case")
    parser.add_argument("--list", action="store_true", help="list the cases and what is known of them")
    parser.add_argument("--suites", type=Path, default=HERE, help="folder of the suites")
    parser.add_argument("--record", type=Path, default=results.ROOT / ".cache" / "full", help="folder of the results")
    parser.add_argument("--pages", type=Path, default=results.ROOT / "benchmarks" / "full", help="folder of the pages")
    options = parser.parse_args(arguments)
    say = lambda text: print(text, flush=True)  # noqa: E731

    chosen = suites.load(options.suites, options.suite)
    source = results.source_state(extra=[options.suites])
    record = results.Record(options.record, source)
    selected = [(s, n, c) for s in chosen for n, c in s.cases() if options.filter in n]
    if options.list:
        for suite, name, _ in selected:
            say(f"{record.status(suite.name, name):9} {suite.name} {name}")
        return 0
    waiting = [entry for entry in selected if record.status(entry[0].name, entry[1]) != "passed"]
    done = len(selected) - len(waiting)
    todo = waiting[: options.limit]
    say(f"{len(selected)} cases, {done} passed before at these sources ({source.label}); running {len(todo)}")
    begun = time.monotonic()
    try:
        failed = run_cases(todo, options.suites, record, options.limit_s, done + len(todo), say)
    finally:
        for suite in chosen:
            results.write_page(options.pages, suite, record)
    say(f"{len(todo) - failed} passed, {failed} failed in {time.monotonic() - begun:.0f} s; pages in {options.pages}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
