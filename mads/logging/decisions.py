"""decisions/round-00003.npy: the ids that a round decided on, in training order, one file a round.

A file is one int64 array that any NumPy reads: round, count, hash (mads.console.record.DecisionHeader), then the ids. It is
written before the round's line in decisions.jsonl and replaced in one rename; files without a line go when a run is resumed.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from mads.console.record import DecisionHeader

FOLDER = "decisions"


def decision_path(run_dir: str | os.PathLike, round_: int) -> Path:
    """Where a round's ids are.

    Raises:
        ValueError: `round_`, which may have been read from a file, is no round.
    """
    if isinstance(round_, bool) or not isinstance(round_, int | np.integer) or round_ < 0:
        raise ValueError(f"{round_!r} is no round of a run; {Path(run_dir) / FOLDER} is left alone")
    return Path(run_dir) / FOLDER / f"round-{round_:05d}.npy"


def write_decision(run_dir: str | os.PathLike, round_: int, ids: np.ndarray) -> Path:
    """Write a round's ids, int64 [k], atomically."""
    path = decision_path(run_dir, round_)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        np.save(file, np.concatenate([DecisionHeader.of(round_, ids).to_array(), ids]), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def read_decision(run_dir: str | os.PathLike, round_: int) -> np.ndarray:
    """A round's ids, int64 [k].

    Raises:
        ValueError: if the file is not what its header vouches for.
    """
    path = decision_path(run_dir, round_)
    values = np.load(path, allow_pickle=False)
    if values.dtype != np.int64 or values.ndim != 1 or len(values) < 3:
        raise ValueError(f"{path} holds {values.dtype} {values.shape}, no decision of a mads run")
    header, own = DecisionHeader.from_array(values[:3]), DecisionHeader.of(round_, values[3:])
    if header != own:
        raise ValueError(f"{path} is damaged: its header is {header}, its ids are those of {own}")
    return values[3:]


def keep_decisions(run_dir: str | os.PathLike, rounds: Collection[int]) -> None:
    """Remove the decisions of all other rounds, and unfinished ones; files of other names stay."""
    keep = {decision_path(run_dir, round_) for round_ in rounds}
    for path in sorted((Path(run_dir) / FOLDER).glob("round-*.npy*")):
        if path not in keep:
            path.unlink()
