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
BATCH_SIZE = 8  # rows of one forward of the harness


def eval_command(arguments: Sequence[str]) -> int:
    """Score the tasks that are given as NAME=FILE; returns the exit code.

    Raises:
        ConfigError, DataError, CheckpointError: bad input, with a remedy.
    """
    parser = argparse.ArgumentParser(
        prog="mads eval", description="Bits per byte of question plus right answer on evaluation tasks, by one process."
    )
    parser.add_argument("run", help="a run folder (its newest checkpoint), or a folder of its checkpoints/")
    parser.add_argument("tasks", nargs="*", metavar="TASK=FILE", help="JSON lines, plain or compressed")
    parser.add_argument("--apart", action="append", default=[], metavar="TASK", help="report it, but not in the mean")
    parser.add_argument("--out", help=f"where the result goes; default: {RESULT} in the run folder")
    parser.add_argument(
        "--limit", type=int, help="texts of a task, chosen by a hash of their content (--harness: its first ones); default: all"
    )
    parser.add_argument("--examples", action="store_true", help="write every text's bits and bytes beside the result")
    parser.add_argument("--data", metavar="DIR", help="prepared directory with the tokenizer; default: the run's data.dir")
    harness = parser.add_argument_group("tasks of lm-evaluation-harness, which come as well or instead")
    harness.add_argument("--harness", nargs="+", default=[], metavar="TASK", help="names of tasks or groups in local YAML files")
    harness.add_argument("--include-path", metavar="DIR", help="folder of these files; they may name code, which is run")
    harness.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question; default: as the task says")
    harness.add_argument("--batch-size", type=int, metavar="N", help="rows of one forward; default: 8")
    known = parser.parse_args(arguments)
    _check_harness(known)
    tasks = _tasks(known.tasks, known.apart, known.limit)
    saved = SavedModel.find(known.run, known.data)
    result, scores = evaluate(saved, tasks, known.apart)
    rows = _rows(scores)
    if known.harness:
        result["harness"], more = _run_harness(saved, known)
        rows += more
    run = saved.checkpoint.parent.parent
    out = Path(known.out) if known.out else run / RESULT
    out.parent.mkdir(parents=True, exist_ok=True)
    if known.examples:
        write_atomically(out.with_suffix(".examples.jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(out, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(as_text(result))
    print(f"written to {out}")
    return 0


def _check_harness(known: argparse.Namespace) -> None:
    given = {"--include-path": known.include_path, "--num-fewshot": known.num_fewshot, "--batch-size": known.batch_size}
    if not known.tasks and not known.harness:
        raise ConfigError("there is nothing to evaluate; give TASK=FILE, or --harness TASK --include-path DIR")
    if known.harness and known.include_path is None:
        raise ConfigError("--harness takes tasks from local YAML files; say with --include-path in which folder they are")
    if not known.harness and (idle := [name for name, value in given.items() if value is not None]):
        raise ConfigError(f"{idle[0]} is for --harness only; leave it out")
    if known.batch_size is not None and known.batch_size < 1:
        raise ConfigError(f"--batch-size={known.batch_size} must be at least 1")
    if known.num_fewshot is not None and known.num_fewshot < 0:
        raise ConfigError(f"--num-fewshot={known.num_fewshot} must be at least 0")


def _run_harness(saved: SavedModel, known: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        from mads.train.harness import run_harness
    except ImportError as error:
        raise ConfigError(f"--harness needs lm-evaluation-harness ({error}): pip install 'mads[eval]'") from error
    size, examples = known.batch_size or BATCH_SIZE, known.examples
    return run_harness(saved, known.harness, known.include_path, _device(), size, known.num_fewshot, known.limit, examples)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    device = _device()
    model = saved.load().to(device) if tasks else None
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
    _, losses = model(batch.tokens, batch.labels, batch.positions, batch.segments)
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
    measure = "; bits per byte of question and right answer" if result["tasks"] else ""
    lines = [f"{result['checkpoint']}, {result['tokens']:,} tokens of training{measure}"]
    for name, task in result["tasks"].items():
        error = "" if task["standard_error"] is None else f" +- {task['standard_error']:.4f}"
        where = " (apart)" if name in result["apart"] else ""
        skipped = f", {task['skipped']:,} without a target" if task["skipped"] else ""
        lines.append(f"  {name:16} {task['bits_per_byte']:.4f}{error}  {task['examples']:,} texts{skipped}{where}")
    if result["mean_bits_per_byte"] is not None:
        lines.append(f"  {'mean of tasks':16} {result['mean_bits_per_byte']:.4f}")
    for name, found in result.get("harness", {}).get("results", {}).items():
        figures = {metric: value for metric, value in found.items() if isinstance(value, float)}  # an error may be "N/A"
        for metric, value in figures.items():
            if "_stderr," not in metric:
                error = figures.get(metric.replace(",", "_stderr,"))
                lines.append(f"  {name:16} {metric.removesuffix(',none')} {value:.5g}" + (f" +- {error:.2g}" if error else ""))
    return "\n".join(lines)
