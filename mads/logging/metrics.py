"""metrics.jsonl and decisions.jsonl: one JSON object a line, written by rank 0, flushed line by line.

Lines of metrics.jsonl carry "kind": train, eval, phase, checkpoint or end (docs of the run folder). A run that is killed and
restarted from a checkpoint cuts both files back to the checkpoint's step, so that they end up equal to the undisturbed run's,
times apart.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from mads.console.record import DecisionRecord
from mads.logging.decisions import FOLDER, decision_path, keep_decisions, write_decision
from mads.paths import no_follow, refuse_links

METRICS = "metrics.jsonl"
DECISIONS = "decisions.jsonl"
KINDS = ("train", "eval", "phase", "checkpoint", "end")


class LogError(RuntimeError):
    """A line of the run folder's files could not be written, because the disk is full for example. The message names the file."""


def json_safe(value: Any) -> Any:
    """Python numbers for NumPy and torch scalars, lists for arrays and tuples; numbers JSON lacks (NaN, inf) become None.

    Raises:
        TypeError: for anything that has no JSON form.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, dict):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(v) for v in value]
    if hasattr(value, "tolist"):
        return json_safe(value.tolist())
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}; log numbers, strings, lists and dicts of them")


def _nonfinite(value: Any, path: str = "") -> dict[str, str]:
    """Where a value holds NaN or infinity: path of keys -> "nan", "inf" or "-inf"."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        items = [(f"{path}.{k}" if path else str(k), v) for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [(f"{path}[{i}]", v) for i, v in enumerate(value)]
    else:
        return {path: str(value)} if isinstance(value, float) and not math.isfinite(value) else {}
    return {k: v for p, item in items for k, v in _nonfinite(item, p).items()}


def read_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a .jsonl file. An unfinished last line (the process was killed while writing it) is left out.

    Raises:
        ValueError: naming file and line, if any other line is not a JSON object.
    """
    lines = Path(path).read_bytes().split(b"\n")
    values = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: {error}; the file is damaged, mend or remove that line") from error
        values.append(value)
    return values


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Replace a file's content in one rename, on disk before it is visible."""
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", opener=no_follow) as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, target)


def refuse_run_links(run_dir: str | os.PathLike) -> None:
    """A run folder may come from others: nothing is written or removed through a symbolic link in it. `checkpoints` may be one,
    and so may the folder itself.

    Raises:
        ValueError: naming the link.
    """
    root = Path(run_dir)
    files = [*root.glob("*.json*"), *root.glob("*.yaml*"), *root.glob("*.html*")]
    folders = [root / name for name in (FOLDER, "profile", "tensorboard", "wandb")]
    below = [path for name in (FOLDER, "profile", "checkpoints") for path in (root / name).glob("*")]
    refuse_links([*files, *folders, *below], "remove it, or choose another run_dir")


def truncate_after(path: str | os.PathLike, step: int) -> int:
    """Drop the lines that a run resumed from `step` will write again; returns how many lines went.

    Kept are the lines with "step" <= step. An "end" line goes too (a resumed run has not ended), and so does an unfinished last
    line. The file is replaced atomically; a missing file is left missing.

    Raises:
        ValueError: if a line has no "step" and is not an end line, or is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        return 0
    values = read_lines(path)
    kept = []
    for number, value in enumerate(values, start=1):
        if value.get("kind") == "end":
            continue
        if not isinstance(value.get("step"), int):
            raise ValueError(f'{path}, line {number} has no integer "step"; the file is not of a mads run or was edited')
        if value["step"] <= step:
            kept.append(value)
    text = "".join(_line(v) for v in kept)
    if text.encode() != path.read_bytes():
        write_atomically(path, text)
    return len(values) - len(kept)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, allow_nan=False) + "\n"


def _key(value: dict[str, Any]) -> tuple:
    """What makes a line the same event in two lives of a run."""
    if "kind" in value:
        return value["kind"], value.get("name"), value.get("step")
    return "decision", value["round"]


def _unwritten(path: Path, size: int, error: OSError) -> LogError:
    return LogError(
        f"{path}: {size:,} bytes could not be written ({error.strerror}); mend that and start the same command again, which goes "
        "on from the newest checkpoint"
    )


class MetricsWriter:
    """Appends to the run folder's two .jsonl files. Made on rank 0 only. Its methods raise LogError where the disk is full.

    resume_step: the step of the checkpoint the run goes on from; later lines are dropped (`truncate_after`), and what is written
        again *at* that step (an evaluation or decision that came after the checkpoint in the same step) is taken once.
        None starts afresh: files of an earlier attempt that left no checkpoint are renamed to NAME.discarded, its ids removed.
    """

    def __init__(self, run_dir: str | os.PathLike, resume_step: int | None = None):
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._written_before: set[tuple] = set()
        for name in (METRICS, DECISIONS):
            path = self.run_dir / name
            if resume_step is None:
                if path.is_file() and path.stat().st_size:
                    os.replace(path, path.with_name(name + ".discarded"))
                if name == DECISIONS:
                    keep_decisions(self.run_dir, ())
                continue
            truncate_after(path, resume_step)
            if name == DECISIONS:
                keep_decisions(self.run_dir, {v["round"] for v in read_lines(path)} if path.is_file() else ())
            if path.is_file():
                self._written_before |= {_key(v) for v in read_lines(path) if v["step"] == resume_step}
        self._files = {name: open(self.run_dir / name, "a", encoding="utf-8") for name in (METRICS, DECISIONS)}

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append one line to metrics.jsonl and return it as written.

        A NaN or infinite number is written as null and named under "nonfinite", for example {"loss": "nan"}.

        Raises:
            ValueError: for an unknown kind.
        """
        if kind not in KINDS:
            raise ValueError(f"metrics have the kinds {', '.join(KINDS)}, not {kind!r}")
        line = {"kind": kind, **json_safe(fields)}
        if odd := _nonfinite(fields):
            line["nonfinite"] = odd
        self._append(METRICS, line)
        return line

    def decision(self, record: DecisionRecord, ids: np.ndarray | None = None) -> None:
        """Write the round's file of ids (if given), then append one line to decisions.jsonl."""
        if ids is not None:
            try:
                write_decision(self.run_dir, record.round, ids)
            except OSError as error:
                raise _unwritten(decision_path(self.run_dir, record.round), ids.nbytes, error) from error
        self._append(DECISIONS, json.loads(record.to_json()))

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if _key(line) in self._written_before:
            return
        text = _line(line)
        try:
            self._files[name].write(text)
            self._files[name].flush()
        except OSError as error:
            raise _unwritten(self.run_dir / name, len(text), error) from error

    def close(self) -> None:
        for f in self._files.values():
            f.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
