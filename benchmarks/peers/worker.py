"""The process of one rank of one contestant: python -P worker.py JOB.json

It reads commands, a JSON object a line, from its standard input and answers on its standard output. Between commands it waits and
computes nothing. It is started as a script, by the Python of the contestant, so that of this repository it sees this folder only:
a version of mads elsewhere stays the one that is measured.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import sys
import traceback
from pathlib import Path

PACKAGE = "step_peers"
KINDS = {  # kind -> module, class
    "mads": ("ours", "Engine"),
    "bare": ("ours", "Bare"),
    "bare-compiled": ("ours", "BareCompiled"),
    "nanogpt": ("plain", "NanoGPT"),
    "nanogpt-compiled": ("plain", "NanoGPTCompiled"),
    "hf": ("hugging_face", "HuggingFace"),
    "hf-trainer": ("hugging_face", "HuggingFaceTrainer"),
    "litgpt": ("others", "LitGPT"),
    "torchtitan": ("others", "TorchTitan"),
    "lingua": ("others", "Lingua"),
}
VERSIONS = {"hf": "transformers", "hf-trainer": "transformers", "litgpt": "litgpt", "torchtitan": "torchtitan"}


def load(module: str):
    """A module of this folder, without the folder's neighbours on the path."""
    if PACKAGE not in sys.modules:
        here = Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location(PACKAGE, here / "__init__.py", submodule_search_locations=[str(here)])
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    return importlib.import_module(f"{PACKAGE}.{module}")


def peak_mib() -> float:
    """Highest resident memory of this process so far. VmHWM, where there is one: getrusage's figure begins with the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Control:
    """Commands in, answers out."""

    def __init__(self, commands, answers, base: float):
        self._commands, self._answers, self._base = commands, answers, base

    def answer(self, value: dict) -> None:
        self._answers.write(json.dumps(value | {"peak_mib": peak_mib() - self._base}) + "\n")
        self._answers.flush()

    def wait(self) -> dict | None:
        """The next command; None: no more."""
        line = self._commands.readline()
        return json.loads(line) if line else None


def run(job, control_of) -> None:
    """Build, check, then obey."""
    module, name = KINDS[job.kind]
    import torch

    torch.set_num_threads(1)
    kind = getattr(load(module), name)
    import_everything(job.kind)
    control = control_of(peak_mib())
    contestant, cell = kind(job), load("cell")
    answer = {"parameters": contestant.parameters(), "version": version(job.kind), "masks": contestant.masks}
    for batch in ("whole", "packed"):
        rows = getattr(cell, f"{batch}_rows")(job.cell.shape, min(128, job.cell.seq_length))
        answer[f"{batch}_loss"] = contestant.check(rows)
    contestant.prepare()
    control.answer(answer)
    contestant.serve(control)


def import_everything(kind: str) -> None:
    """What a contestant would import later, so that it is not counted as memory of its training."""
    names = {"litgpt": "litgpt", "torchtitan": "torchtitan.models.llama3"}
    if kind in names:
        importlib.import_module(names[kind])


def version(kind: str) -> str:
    """Of the contestant's code."""
    from importlib.metadata import version as installed

    import torch

    if KINDS[kind][0] == "ours":
        return f"commit {load('ours').where()}, torch {torch.__version__}"
    own = f"{VERSIONS[kind]} {installed(VERSIONS[kind])}, " if kind in VERSIONS else ""
    return f"{own}torch {torch.__version__}"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get among the answers
    job = load("cell").Job.of_json(json.loads(Path(sys.argv[1]).read_text()))
    sys.path[:0] = job.paths
    control = Control(sys.stdin, answers, 0.0)

    def control_of(base: float) -> Control:
        control._base = base
        return control

    try:
        run(job, control_of)
    except Exception as error:
        traceback.print_exc()
        control.answer({"error": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)  # without the process groups' farewell, which waits for ranks that were told nothing


if __name__ == "__main__":
    main()
