"""How long is a training step of mads, beside other code for the same model on the same batch?

    OMP_NUM_THREADS=1 python -m benchmarks.step --folder FOLDER [--sizes 1M,10M] [--sequences 128,512] [--documents packed,whole]
        [--processes 1] [--contestants mads,bare,nanogpt,hf] [--rounds 7] [--steps 2] [--profile]
    python -m benchmarks.step --folder FOLDER --table
    python -m benchmarks.step --run RUN

Every contestant is a process of its own (several with --processes), started once. They take their steps in turn while all
others wait, so a machine whose speed wanders does so under each; ratios are to mads in the same round. Before the clock runs,
all have to have the same number of parameters and, from equal weights, the same loss. Each cell's result is a file in FOLDER;
a cell that has one is not measured again. A contestant that does not start is in the table, with the reason.

--python NAME=PYTHON runs a contestant by another Python, --path NAME=FOLDER puts a checkout on its path, --against NAME=CHECKOUT
adds mads of another checkout (by its .venv) as mads@NAME and bare@NAME, --variant NAME OVERRIDE... mads with further settings
(--variant ANY@NAME OVERRIDE...: of that checkout).
The last form shows where the time of a whole run of `mads train` went, selection's with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

from benchmarks.peers.cell import SIZES, Cell, Job
from benchmarks.peers.worker import KINDS
from benchmarks.step_tables import PHASES, journal, memory_groups, operators, seconds_of, table, turns
from mads.logging.metrics import METRICS, read_lines

REFERENCE = "mads"
WORKER = Path(__file__).with_name("peers") / "worker.py"
TOKENS = {"1M": 4096, "10M": 2048, "100M": 1024}  # of a step and process; at least a row
BYTES = {"1M": 0.9e9, "10M": 1.3e9, "100M": 4.0e9}  # a process needs at most
CLOSE = 1e-5  # losses of equal weights, relative
PROFILED = 3  # steps
STAGES = {"mads": [], "mads-zero0": ["parallel=zero0"]}


class Contestant:
    """The processes of one contestant in one cell."""

    def __init__(self, name: str, job: Job, python: str, folder: Path):
        self.name, self.processes = name, []
        folder.mkdir(exist_ok=True)
        spec, port = folder / f"{name}.json", free_port()
        spec.write_text(json.dumps(job.to_json()))
        count = job.cell.processes
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            if job.kind == "hf-trainer" and count == 1:  # as without a launcher: the variables alone would bring it to DDP
                place = {"OMP_NUM_THREADS": "1"}
            with open(folder / f"{name}-{rank}.log", "wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [python, "-P", str(WORKER), str(spec)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        env=os.environ | place,
                    )
                )

    def answers(self) -> list[dict]:
        """One of every rank.

        Raises:
            RuntimeError: a rank failed; all are ended.
        """
        found = []
        for process in self.processes:
            line = process.stdout.readline()
            found.append(json.loads(line) if line else {"error": "the process ended; its log is in the folder"})
            if "error" in found[-1]:
                self.end()
                raise RuntimeError(found[-1]["error"])
        return found

    def ask(self, **command) -> list[dict]:
        for process in self.processes:
            process.stdin.write(json.dumps(command).encode() + b"\n")
            process.stdin.flush()
        return self.answers()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def check(entries: dict[str, dict], parameters: int) -> None:
    """All have as many parameters and the same losses.

    Raises:
        ValueError: naming what differs.
    """
    expected = entries[REFERENCE]
    for name, entry in entries.items():
        if "skipped" in entry:
            continue
        if entry["parameters"] != parameters:
            raise ValueError(f"{name} has {entry['parameters']:,} parameters, the model has {parameters:,}")
        for batch in ("whole", "packed") if entry["masks"] else ("whole",):
            mine, theirs = entry[f"{batch}_loss"], expected[f"{batch}_loss"]
            if abs(mine - theirs) > CLOSE * theirs:
                raise ValueError(f"the loss of {name} on {batch} documents is {mine}, that of {REFERENCE} {theirs}")


def start(names: list[str], jobs: dict[str, tuple[Job, str]], folder: Path, entries: dict[str, dict]) -> dict[str, Contestant]:
    """Start contestants one after the other; those that cannot are entered as skipped."""
    running = {}
    for name in names:
        contestant = Contestant(name, *jobs[name], folder / "logs")
        try:
            first, *_ = contestant.answers()
            entries[name] = first
            running[name] = contestant
        except RuntimeError as error:
            if name == REFERENCE:
                raise
            entries[name] = {"skipped": " ".join(str(error).split())[:160]}
    return running


def measure_group(running: dict[str, Contestant], args: argparse.Namespace, entries: dict[str, dict]) -> list[dict]:
    """The rounds, each {"wall": {name: seconds a step}, "cpu": ...}; the first turn of everybody is not counted."""
    from benchmarks.peers.data import matmul_peak

    phases = {name: [] for name in running}
    found = []
    for contestant in running.values():
        contestant.ask(do="steps", count=args.warm_up)
    until = time.monotonic() + 60 * args.minutes
    for round_ in range(args.rounds):
        if round_ and time.monotonic() > until:
            break
        result = {"wall": {}, "cpu": {}, "loss": {}, "peak": matmul_peak()}
        for name in turns(list(running), round_):
            each = [answer["steps"] for answer in running[name].ask(do="steps", count=args.steps)]
            for what in ("wall", "cpu"):
                result[what][name] = seconds_of(each, what)
            result["loss"][name] = each[0][-1]["loss"]
            phases[name] += each[0]
        found.append(result)
    for name, contestant in running.items():
        first = contestant.ask(do="profile", count=PROFILED) if args.profile else contestant.ask(do="steps", count=1)
        entries[name]["peak_mib"] = max(answer["peak_mib"] for answer in first)
        entries[name]["phases"] = {p: statistics.median(step[p] for step in phases[name]) for p in PHASES}
        if args.profile:
            entries[name]["profile"] = {key: first[0][key] for key in ("groups", "operators")}
    return found


def measure(cell: Cell, args: argparse.Namespace) -> dict:
    """A cell's result."""
    from benchmarks.peers.data import matmul_peak, write_cell
    from benchmarks.peers.ours import configuration
    from mads.model.shape import flops_per_token

    folder = Path(args.folder).resolve() / "work"
    if folder.exists():
        shutil.rmtree(folder)
    data = write_cell(cell, folder)
    jobs = jobs_of(cell, args, folder)
    entries: dict[str, dict] = {}
    rounds: list[dict] = []
    peaks = [matmul_peak()]
    for names in memory_groups(list(jobs), REFERENCE, BYTES[cell.size] * cell.processes, args.memory_gib * 2**30):
        running = start(names, jobs, folder, entries)
        try:
            check(entries, data["parameters"])
            rounds += measure_group(running, args, entries)
        finally:
            for contestant in running.values():
                contestant.end()
    shutil.rmtree(folder / "pool")
    config = configuration(jobs[REFERENCE][0])
    return {
        "cell": vars(cell),
        "reference": REFERENCE,
        "date": time.strftime("%Y-%m-%d"),
        "steps": args.steps,
        "cores": os.cpu_count(),
        "data": data,
        "flops_per_token": flops_per_token(config.model, cell.seq_length),
        "peak_gflops": max(peaks + [r["peak"] for r in rounds]),
        "contestants": {name: entries[name] for name in jobs},
        "rounds": rounds,
    }


def jobs_of(cell: Cell, args: argparse.Namespace, folder: Path) -> dict[str, tuple[Job, str]]:
    """Name -> its job and its Python, the reference first."""
    pythons, paths = pairs(args.python), pairs(args.path)
    found = {}
    for name in [REFERENCE, *(n for n in args.contestants if n != REFERENCE)]:
        kind, overrides = ("mads", STAGES[name]) if name in STAGES else (name, [])
        own = (str(Path(paths[name]).resolve()),) if name in paths else ()
        found[name] = (Job(kind, cell, str(folder), overrides=tuple(overrides), paths=own), pythons.get(name, sys.executable))
    checkouts = {name: str(Path(folder).resolve() / ".venv" / "bin" / "python") for name, folder in pairs(args.against).items()}
    for name, *overrides in args.variant:
        python = checkouts[name.split("@")[1]] if "@" in name else sys.executable
        found[name] = (Job("mads", cell, str(folder), overrides=tuple(overrides)), python)
    for name, python in checkouts.items():
        for kind in ("mads", "bare"):
            if kind in args.contestants:
                found[f"{kind}@{name}"] = (Job(kind, cell, str(folder)), python)
    return found


def pairs(values: list[str]) -> dict[str, str]:
    return dict(value.split("=", 1) for value in values)


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """All combinations, small ones first."""
    found = []
    lengths, counts = map(int, args.sequences), map(int, args.processes)
    for size, length, documents, processes in product(args.sizes, lengths, args.documents, counts):
        rows = args.rows or max(1, TOKENS[size] // length)
        found.append(Cell(size, length, documents, processes, rows, args.accumulation))
    return found


def results_of(folder: Path) -> list[dict]:
    """Those in the folder, by size, length, documents, processes."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("cell-*.json"))]
    order = lambda cell: (list(SIZES).index(cell["size"]), cell["processes"], cell["seq_length"], cell["documents"])
    return sorted(results, key=lambda result: order(result["cell"]))


def arguments() -> argparse.Namespace:
    split = lambda text: text.split(",")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="for results and what is made on the way")
    parser.add_argument("--run", help="a run folder")
    parser.add_argument("--table", action="store_true", help="print the tables of the results that are there, measure nothing")
    parser.add_argument("--sizes", type=split, default=["1M"], help=f"of {', '.join(SIZES)}")
    parser.add_argument("--sequences", type=split, default=["128"])
    parser.add_argument("--documents", type=split, default=["packed", "whole"])
    parser.add_argument("--processes", type=split, default=["1"])
    known = ", ".join({**STAGES, **KINDS})
    parser.add_argument("--contestants", type=split, default=["mads", "bare", "nanogpt", "hf"], help=f"of {known}")
    parser.add_argument("--rows", type=int, help="of a micro-batch; default: by the size")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--warm-up", type=int, default=2, help="steps that are not counted")
    parser.add_argument("--minutes", type=float, default=60.0, help="no further round begins behind them")
    parser.add_argument("--memory-gib", type=float, default=10.0, help="for all contestants; more are compared in groups")
    parser.add_argument("--profile", action="store_true", help="further steps of each under torch.profiler")
    for name in ("--python", "--path", "--against"):
        parser.add_argument(name, action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--variant", action="append", default=[], nargs="+", metavar="NAME OVERRIDE")
    args = parser.parse_args()
    if bool(args.run) == bool(args.folder):
        parser.error("one of --folder and --run is needed")
    if unknown := sorted(set(args.contestants) - set(KINDS) - set(STAGES)) + sorted(set(args.sizes) - set(SIZES)):
        parser.error(f"unknown: {', '.join(unknown)}")
    return args


def main() -> None:
    """Measure what is missing, print everything."""
    args = arguments()
    if args.run:
        print(journal(read_lines(Path(args.run) / METRICS)))
        return
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for cell in [] if args.table else cells_of(args):
        path = folder / f"cell-{cell.name}.json"
        if path.exists():
            continue
        result = measure(cell, args)
        path.write_text(json.dumps(result, indent=1))
        print(table(result), flush=True)
    if args.table:
        for result in results_of(folder):
            print(table(result), end="\n\n")
            if any("profile" in entry for entry in result["contestants"].values()):
                print(operators(result), end="\n\n")


if __name__ == "__main__":
    main()
