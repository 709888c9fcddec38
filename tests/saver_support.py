"""A Saver without other ranks and without a training engine, and what happens to it when the process is killed at any moment.

`python saver_support.py FOLDER SABOTAGE` saves step 1, and then, in one child process a moment, step 2, killing the child at its
first, second, ... call that reaches the disk; prints one JSON object a line about what is left.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from mads.checkpoint import tensors, writing
from mads.checkpoint.finding import find_latest
from mads.checkpoint.manifest import Keep, name_of
from mads.checkpoint.saver import Saver
from mads.layout import REPLICATED, Layout, mark
from mads.topology import Grid

SABOTAGE = ""  # what a mutant breaks in the script's process
ARRAYS = {"pending_ids": np.arange(4)}


def alone():
    """The topology of one rank without process groups."""
    return SimpleNamespace(
        rank=0, world_size=1, grid=Grid(), group=lambda name: None, coordinate=lambda axis: 0, size=lambda axis: 1
    )


def fake_engine(steps=1, value=1.0):
    """Three parameters, of which one is another stage's; all tensors hold `value`."""
    made = {"b": torch.zeros(4, 3), "a": torch.zeros(5), "tied": torch.zeros(2, 2)}
    marked = {
        name: mark(torch.nn.Parameter(t.fill_(value)), Layout(axis=0) if name == "b" else REPLICATED, name, copy=name == "tied")
        for name, t in made.items()
    }
    moments = {(p, key): p.detach() * 10 for p in marked.values() for key in ("exp_avg", "exp_avg_sq")}
    state = SimpleNamespace(steps=steps, full=lambda p, key: p.detach() if key == "weight" else moments[p, key])
    shapes = {name: p.shape for name, p in marked.items() if name != "tied"}
    return SimpleNamespace(parameters=sorted(marked.items()), state=state, logical_shapes=shapes, moments=moments)


def make_saver(root, **options):
    return Saver(root, alone(), **({"keep": Keep(2), "max_file_bytes": 40, "limit_s": 5.0} | options))


def values_in(folder):
    """All tensors of a checkpoint by (key, name), read by safetensors itself."""
    from safetensors.torch import load_file

    return {(f.name.split("-")[0], n): t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}


def _die_at(moment):
    """Kill this process at the given call (from 0) of what puts files in their place."""
    calls = [0]

    def counted(original):
        def call(*args, **kwargs):
            if calls[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            calls[0] += 1
            return original(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "unlink", "scandir"):
        setattr(os, name, counted(getattr(os, name)))


def _second_save(root, moment):
    torch.set_num_threads(1)
    saver, engine = make_saver(root), fake_engine(2, 2.0)
    _die_at(moment)
    saver.save(2, engine, {"step": 2}, ARRAYS, {})
    for _, parameter in engine.parameters:
        parameter.data.fill_(-1.0)
    saver.wait()


def _move_the_pointer_first():
    real = writing.publish

    def publish(root, temporary, step, files):
        (root / "latest").write_text(name_of(step) + "\n")
        return real(root, temporary, step, files)

    writing.publish = publish


def main(folder, sabotage):
    if sabotage == "pointer first":
        _move_the_pointer_first()
    killed, moment = True, 0
    while killed:
        root = Path(folder) / str(moment)
        child = os.fork()
        if child == 0:
            first = make_saver(root)
            first.save(1, fake_engine(1, 1.0), {"step": 1}, ARRAYS, {})
            first.wait()
            _second_save(root, moment)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        found = find_latest(root)
        values = {float(v) for t in values_in(found).values() for v in t.flatten()}
        complete = {(key, name) for key in tensors.KEYS for name in ("a", "b")} == set(values_in(found))
        told = {"moment": moment, "killed": killed, "found": found.name, "values": sorted(values), "complete": complete}
        print(json.dumps(told | {"latest": (root / "latest").read_text().strip()}), flush=True)
        moment += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
