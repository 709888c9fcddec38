"""`mads eval`: a checkpoint on evaluation tasks, by one process (docs/evaluation.md). The measure is that of mads.eval.tasks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mads.checkpoint.canonical import read_state
from mads.config.compose import ConfigError
from mads.data.batch import PackedBatch, sum_by_sample
from mads.data.schema import sha256_of
from mads.eval.tasks import Task, TaskScore, macro_average, read_task, score_task
from mads.logging.metrics import write_atomically
from mads.model.decoder import Decoder
from mads.train.inference import SavedModel

RESULT = "evaluation.json"


def eval_command(arguments: Sequence[str]) -> int:
    """Score the tasks that are given as NAME=FILE; returns the exit code.

    Raises:
        ConfigError, DataError, CheckpointError: bad input, with a remedy.
    """
    parser = argparse.ArgumentParser(
        prog="mads eval", description="Bits per byte of question plus right answer on evaluation tasks, by one process."
    )
    parser.add_argument("run", help="a run folder (its newest checkpoint), or a folder of its checkpoints/")
    parser.add_argument("tasks", nargs="+", metavar="TASK=FILE", help="JSON lines, plain or compressed")
    parser.add_argument("--apart", action="append", default=[], metavar="TASK", help="report it, but not in the mean")
    parser.add_argument("--out", help=f"where the result goes; default: {RESULT} in the run folder")
    parser.add_argument("--limit", type=int, help="texts of a task, chosen by a hash of their content; default: all")
    parser.add_argument("--examples", action="store_true", help="write every text's bits and bytes beside the result")
    parser.add_argument("--data", metavar="DIR", help="prepared directory with the tokenizer; default: the run's data.dir")
    known = parser.parse_args(arguments)
    tasks = _tasks(known.tasks, known.apart, known.limit)
    saved = SavedModel.find(known.run, known.data)
    result, scores = evaluate(saved, tasks, known.apart)
    run = saved.checkpoint.parent.parent
    out = Path(known.out) if known.out else run / RESULT
    out.parent.mkdir(parents=True, exist_ok=True)
    if known.examples:
        write_atomically(out.with_suffix(".examples.jsonl"), "".join(json.dumps(row) + "\n" for row in _rows(scores)))
    write_atomically(out, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(as_text(result))
    print(f"written to {out}")
    return 0


def _tasks(given: Sequence[str], apart: Sequence[str], limit: int | None) -> list[Task]:
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit={limit} must be at least 1")
    named = [task.partition("=") for task in given]
    if wrong := [task for task, (name, _, path) in zip(given, named) if not name or not path]:
        raise ConfigError(f"{wrong[0]!r} is not of the form TASK=FILE")
    names = [name for name, _, _ in named]
    if len(set(names)) < len(names):
        raise ConfigError(f"the tasks {names} do not all have names of their own")
    if unknown := sorted(set(apart) - set(names)):
        raise ConfigError(f"--apart {unknown[0]} is none of the tasks {names}")
    return [read_task(name, path, limit) for name, _, path in named]


def evaluate(saved: SavedModel, tasks: Sequence[Task], apart: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, TaskScore]]:
    """(what evaluation.json holds, the scores by task)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = saved.load().to(device)
    state = read_state(saved.checkpoint)[0]
    scores = {}
    for task in tasks:
        scores[task.name] = score_task(
            task, saved.tokenizer, lambda batch: _losses(model, batch.to(device)), saved.config.data.seq_length
        )
    result = {
        "checkpoint": saved.checkpoint.name,
        "checkpoint_sha256": sha256_of(saved.checkpoint / "manifest.json"),
        "step": state["step"],
        "tokens": state["tokens"],
        "seq_length": saved.config.data.seq_length,
        "tasks": {name: score.summary() for name, score in scores.items()},
        "apart": sorted(apart),
        "mean_bits_per_byte": macro_average(scores, apart),
        "files": {task.name: task.sha256 for task in tasks},
    }
    return result, scores


@torch.inference_mode()
def _losses(model: Decoder, batch: PackedBatch) -> np.ndarray:
    losses = model(batch.tokens, batch.labels, batch.positions, batch.segments)
    return sum_by_sample(losses, batch).cpu().numpy()


def _rows(scores: dict[str, TaskScore]) -> list[dict[str, Any]]:
    """One row a text, in the order of the files."""
    return [
        {"task": name, "index": i, "bits": float(bits), "bytes": int(size)}
        for name, score in scores.items()
        for i, (bits, size) in enumerate(zip(score.bits, score.sizes))
    ]


def as_text(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"{result['checkpoint']}, {result['tokens']:,} tokens of training; bits per byte of question and right answer"]
    for name, task in result["tasks"].items():
        error = "" if task["standard_error"] is None else f" +- {task['standard_error']:.4f}"
        where = " (apart)" if name in result["apart"] else ""
        skipped = f", {task['skipped']:,} without a target" if task["skipped"] else ""
        lines.append(f"  {name:16} {task['bits_per_byte']:.4f}{error}  {task['examples']:,} texts{skipped}{where}")
    if result["mean_bits_per_byte"] is not None:
        lines.append(f"  {'mean of tasks':16} {result['mean_bits_per_byte']:.4f}")
    return "\n".join(lines)
