"""One cell of a comparison, from its first step to its result: each stage is a mads command in a process of its own.

    runs/STRATEGY-SEED/
      cell.json        the settings that these runs belong to
      trunk/           a run folder; branch-0.60/ and so on: one for each branch
      evaluation-0.60.json
      stages.json      what each stage took: wall and CPU seconds over all its starts
      state.json       which stage runs, or why the cell failed
      log.txt          what the commands said
Called again, it goes on behind the last stage that ended, and a run that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mads.compare.collect import collect, ended_at
from mads.compare.plan import Branch, Cell, changes, read_plan, result_path, work_folder
from mads.launch.children import end_with, run_mads
from mads.logging.metrics import write_atomically

LAST_WORDS = 12  # lines of a failed stage's log that are told


class StageError(RuntimeError):
    """A command of a cell failed; the message has its last words."""


def run_job(config) -> str:
    """The sweep's task (a CellJobConfig): run one cell. Returns done, skipped or failed; an error is left in state.json, for the
    other cells go on.

    Raises:
        KeyboardInterrupt: if it was interrupted.
    """
    path = Path(config.plan)
    plan, cells = read_plan(path)
    end_with(plan["parent"])
    cell, folder = cells[config.cell], path.parent
    if result_path(folder, cell.name).is_file():
        return "skipped"
    work = work_folder(folder, cell.name)
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            write_json(work / "state.json", {"error": "another process runs this cell; wait for it, or end it"})
            return "failed"
        try:
            _run(cell, work, plan, result_path(folder, cell.name))
        except StageError as error:
            write_json(work / "state.json", {"error": str(error)})
            return "failed"
        except Exception as error:  # the sweep goes on; nothing is lost, for the whole of it is told
            write_json(work / "state.json", {"error": f"{type(error).__name__}: {error}\n{traceback.format_exc()}"})
            return "failed"
    return "done"


def _run(cell: Cell, work: Path, plan: dict[str, Any], result: Path) -> None:
    owner = work / "cell.json"
    if owner.is_file() and (found := changes(cell.settings, json.loads(owner.read_text())["settings"])):
        raise StageError(f"{work} holds runs of other settings:\n  " + "\n  ".join(found))
    write_json(owner, {"settings": cell.settings})
    stages = Stages(work, plan["threads"])
    trunk = work / "trunk"
    stages.run("trunk", trunk_arguments(cell, trunk), lambda: ended_at(trunk) == cell.trunk_steps)
    ends = [(branch, work / f"branch-{branch.fraction:.2f}") for branch in cell.branches] or [(None, trunk)]
    for branch, run in ends:
        fraction = branch.fraction if branch else 1.0
        if branch:
            name = f"branch {fraction:g}"
            stages.run(name, branch_arguments(cell, branch, trunk, run), lambda b=branch, r=run: ended_at(r) == b.steps)
        if plan["evaluation"]:
            out, step = work / f"evaluation-{fraction:.2f}.json", branch.steps if branch else cell.steps
            arguments = evaluation_arguments(run, plan["evaluation"], plan["apart"], out)
            stages.run(f"evaluation {fraction:g}", arguments, lambda o=out, s=step: evaluated_at(o) == s)
    result.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(result, as_lines(collect(cell, work, plan, stages.taken)))
    write_json(work / "state.json", {"stage": "done"})


def trunk_arguments(cell: Cell, run: Path) -> list[str]:
    """`mads train` of the trunk."""
    return [
        "train",
        "--workers",
        "1",
        *cell.trunk,
        f"train.steps={cell.steps}",
        f"train.stop_at={cell.trunk_steps}",
        f"run_dir='{run}'",
    ]


def branch_arguments(cell: Cell, branch: Branch, trunk: Path, run: Path) -> list[str]:
    """`mads train` of a branch: the trunk's settings, its checkpoint, and a decay to its own end."""
    leaves = f"train.branch_from='{trunk / 'checkpoints' / f'step-{branch.start:08d}'}'"
    return ["train", "--workers", "1", *cell.branch, leaves, f"train.steps={branch.steps}", f"run_dir='{run}'"]


def evaluation_arguments(run: Path, tasks: dict[str, str], apart: list[str], out: Path) -> list[str]:
    """`mads eval` of a run's last checkpoint."""
    given = [f"{name}={path}" for name, path in tasks.items()]
    return ["eval", str(run), *given, *(f"--apart={task}" for task in apart), "--out", str(out)]


def evaluated_at(path: Path) -> int | None:
    """The step that an evaluation is of, if it is there."""
    return json.loads(path.read_text(encoding="utf-8"))["step"] if path.is_file() else None


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a JSON value, in one rename."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def as_lines(value: dict[str, Any]) -> str:
    """A JSON object with a line for each of its keys: results are committed, and read as differences between commits."""
    lines = [f"{json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


class Stages:
    """Runs the stages of a cell that are not done, and keeps what each took.

    taken: stage -> {"seconds", "cpu_seconds", "starts"}; a start whose parent was killed with it is counted, its seconds are not
    """

    def __init__(self, work: Path, threads: int):
        self._work, self._threads, self._file = work, threads, work / "stages.json"
        self.taken = json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}

    def run(self, name: str, arguments: list[str], done: Callable[[], bool]) -> None:
        """Run a command unless it is `done`.

        Raises:
            StageError: if it failed, or ended well and is still not done.
        """
        if done():
            return
        write_json(self._work / "state.json", {"stage": name})
        entry = self.taken.setdefault(name, {"seconds": 0.0, "cpu_seconds": 0.0, "starts": 0})
        entry["starts"] += 1
        write_json(self._file, self.taken)
        log = self._work / "log.txt"
        start = log.stat().st_size if log.is_file() else 0
        ended = run_mads(arguments, log, self._threads)
        entry["seconds"] += round(ended.seconds, 2)
        entry["cpu_seconds"] += round(ended.cpu_seconds, 2)
        write_json(self._file, self.taken)
        if ended.code or not done():
            with open(log, "rb") as file:
                file.seek(start)
                said = file.read().decode(errors="replace").strip().splitlines()
            raise StageError(f"{name}: {_outcome(ended.code)}\n" + "\n".join(said[-LAST_WORDS:]))


def _outcome(code: int) -> str:
    if code > 128:
        return f"ended by signal {code - 128}"
    return f"exit code {code}" if code else "ended without an error and without its result"
