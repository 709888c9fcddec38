"""Measurements that can be stopped and started again: one JSON line a cell, ranks that are processes, and two simple laws."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import subprocess
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def finished(path: Path) -> dict[str, Any]:
    """Cell -> result, of the cells that were measured. A line that was cut off does not count."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            cell = json.loads(line)
        except ValueError:
            continue
        found[cell["cell"]] = cell["result"]
    return found


def measure_cells(path: Path, cells: Iterable[tuple[str, Callable[[], Any]]], say: Callable[[str], None] = print) -> dict:
    """Measure the cells that the file lacks, one after the other; returns all. Each is a name and what gives its result, a JSON
    value."""
    found = finished(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, measure in cells:
        if name in found:
            continue
        found[name] = measure()
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": name, "result": found[name], **_provenance()}) + "\n")
        say(f"{name}: {json.dumps(found[name])[:160]}")
    return found


def _provenance() -> dict[str, str]:
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True).stdout.strip()
    return {"date": datetime.datetime.now().isoformat(timespec="seconds"), "commit": commit}


# ---------------------------------------------------------------- ranks


def on_ranks(world: int, function: Callable, *arguments) -> list[Any]:
    """`function(*arguments)` on so many processes of one thread each with a gloo group; their results in the order of the ranks.

    Raises:
        RuntimeError: with the traceback of the first rank that failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(rank, world, folder, there, function, arguments))
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        try:
            answers = [pipe.recv() for pipe in pipes]
        except EOFError:
            raise RuntimeError("a rank ended without a result") from None
        finally:
            for process in processes:
                process.join(10)
                if process.is_alive():
                    process.terminate()
    for rank, (right, value) in enumerate(answers):
        if not right:
            raise RuntimeError(f"rank {rank} of {world} failed:\n{value}")
    return [value for _, value in answers]


def _rank(rank: int, world: int, folder: str, pipe, function: Callable, arguments: tuple) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": 0}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of torch against DeepSpeed's calls, a line a call
    store = torch.distributed.FileStore(f"{folder}/store", world)
    limit = datetime.timedelta(minutes=10)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=limit)
    try:
        answer = (True, function(*arguments))
    except BaseException:  # the other ranks may hang then, and are ended
        answer = (False, traceback.format_exc())
    pipe.send(answer)
    if answer[0]:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


# ---------------------------------------------------------------- laws


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """(a, b, the greatest relative deviation of a point) of y = a + b x with the least squared relative errors, a >= 0."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    design = np.stack([1 / y, x / y], axis=1)
    a, b = np.linalg.lstsq(design, np.ones(len(y)), rcond=None)[0]
    if a < 0:
        a, b = 0.0, float((x / y).sum() / ((x / y) ** 2).sum())
    return float(a), float(b), float(np.abs((a + b * x) / y - 1).max())


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of y ~ x^p, by least squares of the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, lower, upper quartile)."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), float(low), float(high)
