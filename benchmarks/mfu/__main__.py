"""The MFU table of a node with GPUs: each cell is a `deepspeed` launch of the real `mads train` on a generated pool.

    python -m benchmarks.mfu --folder FOLDER                     # 373M and 1.3B on 1 and 8 GPUs: ZeRO 1-3, tensor parallel 2, 4
    python -m benchmarks.mfu --folder FOLDER --models paper_1b3 --gpus 8 --layouts zero1 tp2
    python -m benchmarks.mfu --folder FOLDER --plan              # the cells with their keys; runs nothing

Stops where anything falls back (benchmarks/mfu/checks.py lists the names): before the first cell, and after a cell that recorded
something else than it was asked for. `--allow NAME` lets one pass and marks the rows. Results are FOLDER/cells/*.json and
FOLDER/mfu.md; a cell with a result for the same keys and commit is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.mfu.checks import NAMES, WARNINGS, Finding, last_lines, machine_findings, run_findings
from benchmarks.mfu.facts import Machine, throttles
from benchmarks.mfu.plan import LAYOUTS, MODELS, Cell, Settings, cells, command
from benchmarks.mfu.pool import write_pool
from benchmarks.mfu.table import figures, markdown
from mads.config.compose import ConfigError, compose
from mads.launch.processes import free_port
from mads.logging import read_lines
from mads.logging.metrics import write_atomically
from mads.model.shape import flops_per_token

ROOT = Path(__file__).resolve().parents[2]
LOOK_S = 5.0  # between two looks at the clocks of the GPUs


class Refused(RuntimeError):
    """Something falls back. The message names it and the remedy."""


def refuse(findings: Sequence[Finding], allowed: Sequence[str], where: str) -> list[str]:
    """The findings that are let pass, as texts for the table; warnings are told at once.

    Raises:
        Refused: with all that are not.
    """
    for finding in findings:
        if not finding.stops:
            print(f"warning: {where}: {finding}", file=sys.stderr, flush=True)
    stopping = list(dict.fromkeys(str(f) for f in findings if f.stops and f.name not in allowed))
    if stopping:
        raise Refused(
            f"{where}:\n" + "\n".join(f"  {text}" for text in stopping) + "\nnothing is measured with a fallback that is not "
            "named: mend it, or let it pass with --allow NAME, which marks the rows"
        )
    return list(dict.fromkeys(str(f) for f in findings))


def look_at_machine() -> Machine:
    """The facts, from a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.mfu.facts"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise Refused(f"looking at this machine failed:\n{done.stderr.strip()[-2000:]}")
    return Machine(**json.loads(done.stdout.splitlines()[-1]))


def preflight(gpus: int, folder: Path) -> list[Finding]:
    """`mads doctor --preflight` with a process for each GPU: versions, ports, an all-reduce over NCCL."""
    arguments = ["--preflight", f"--workers={gpus}", f"run_dir={folder / 'preflight'}", "data=prepared", "selection=random"]
    arguments += [f"train.global_batch_size={8 * gpus}"]
    done = subprocess.run([sys.executable, "-m", "mads.cli", "doctor", *arguments], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode == 0:
        return []
    wrong = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("wrong:", "mads doctor:"))]
    return [Finding("preflight", f"{line}; see docs/doctor.md") for line in wrong or [done.stderr.strip()[-300:]]]


def run_cell(cell: Cell, pool: Path, run_dir: Path, minutes: float, log: Path) -> tuple[int, int]:
    """(exit code, bits of throttling seen); the cell's processes are ended after `minutes`."""
    shutil.rmtree(run_dir, ignore_errors=True)
    variables = {"PROCESSES": str(cell.gpus), "PYTHON": sys.executable, "MASTER_PORT": str(free_port())}
    arguments = ["bash", str(ROOT / "launch" / "deepspeed.sh"), *command(cell, pool, run_dir)]
    seen, deadline = 0, time.monotonic() + 60 * minutes
    with open(log, "wb") as out:
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=os.environ | variables, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    process.wait(LOOK_S)
                except subprocess.TimeoutExpired:
                    seen |= _throttled()
        finally:
            if process.poll() is None:
                _end(process)
    return process.returncode, seen


def _throttled() -> int:
    bits = 0
    try:
        for gpu in throttles():
            bits |= gpu
    except (OSError, subprocess.SubprocessError):
        pass  # told before the first cell
    return bits


def _end(process: subprocess.Popen) -> None:
    """The launcher passes SIGTERM on to the ranks; what is left of its session is killed."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(cell: Cell, settings: Settings, machine: Machine, folder: Path, allowed: Sequence[str], minutes: float) -> dict:
    """The cell's figures and marks.

    Raises:
        Refused: the run failed, or recorded a fallback that is not allowed.
    """
    before = refuse(list(machine_findings(machine, cell)), allowed, cell.name)
    run_dir, log, pool = folder / "runs" / cell.name, folder / "runs" / f"{cell.name}.log", pool_of(cell, settings, folder)
    code, throttled = run_cell(cell, pool, run_dir, minutes, log)
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    if code:
        text = last_lines(log)
        remedy = (
            "; it ran out of memory: give --micro-batch fewer rows" if "out of memory" in log.read_text(errors="replace") else ""
        )
        raise Refused(f"{cell.name} ended with exit code {code}{remedy} ({log}):\n{text}")
    recorded = json.loads((run_dir / "environment.json").read_text())
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    found = list(run_findings(cell, recorded, config, log.read_text(errors="replace"), throttled))
    marks = list(dict.fromkeys([*before, *refuse(found, allowed, f"{cell.name}, as it ran")]))
    model = compose([*cell.overrides, "data.dir=pool", "run_dir=run"]).model
    measured = figures(
        read_lines(run_dir / "metrics.jsonl"),
        settings.warmup,
        flops_per_token(model, settings.seq_length),
        cell.gpus,
        recorded["resolved"].get("device_name", ""),
        cell.global_batch * settings.seq_length,
    )
    return {"figures": measured, "findings": marks, "resolved": recorded["resolved"]}


def pool_of(cell: Cell, settings: Settings, folder: Path) -> Path:
    """Generate what the cell trains on. A round must not end within the run; sizes are powers of 2, so that cells share pools."""
    vocabulary = compose([*cell.overrides, "data.dir=pool", "run_dir=run"]).model.vocab_size
    needed = int(1.06 * (settings.steps + 1) * cell.global_batch * settings.seq_length)
    tokens = 1 << (needed - 1).bit_length()
    pool = folder / "pools" / f"{vocabulary}-{settings.seq_length}-{settings.sample_tokens}-{tokens}"
    write_pool(pool, vocabulary, settings.seq_length, settings.sample_tokens, tokens)
    return pool


def key_of(cell: Cell, settings: Settings, machine: Machine) -> dict[str, Any]:
    """What a result is of: with another one, the cell is measured again."""
    return json.loads(
        json.dumps(
            {
                "cell": dataclasses.asdict(cell),
                "settings": dataclasses.asdict(settings),
                "commit": machine.git["commit"] if machine.git else None,
                "versions": machine.versions,
                "devices": [d["name"] for d in machine.devices[: cell.gpus]],
            }
        )
    )


def facts_of(machine: Machine) -> dict[str, str]:
    """The foot of the table."""
    names = ["mads", "torch", "deepspeed", "flash-attn", "triton", "CUDA", "NCCL", "driver"]
    foot = {name: machine.versions.get(name, "-") for name in names}
    foot["commit"] = "-" if machine.git is None else machine.git["commit"][:12] + (" modified" * machine.git["modified"])
    foot["devices"] = ", ".join(sorted({d["name"] for d in machine.devices})) or "none"
    foot["power limit"] = ", ".join(sorted({f"{row['power.limit']} W" for row in machine.smi})) or "-"
    foot["date"] = time.strftime("%Y-%m-%d")
    return foot


def write_table(folder: Path, planned: Sequence[Cell], facts: dict[str, str]) -> Path:
    """FOLDER/mfu.md, of the planned cells that have a result."""
    paths = [folder / "cells" / f"{cell.name}.json" for cell in planned]
    results = [json.loads(path.read_text()) for path in paths if path.is_file()]
    write_atomically(folder / "mfu.md", markdown(results, facts))
    return folder / "mfu.md"


def measure_all(planned: Sequence[Cell], settings: Settings, machine: Machine, args: argparse.Namespace) -> int:
    """Run what has no result yet; stops at the first refusal. Returns the exit code."""
    for name in ("cells", "runs", "pools"):
        (args.folder / name).mkdir(parents=True, exist_ok=True)
    for cell in planned:  # all of it, before any cell takes its minutes
        refuse(list(machine_findings(machine, cell)), args.allow, cell.name)
    for count in sorted({cell.gpus for cell in planned}):
        refuse(preflight(count, args.folder), args.allow, f"preflight with {count} processes")
    code = 0
    for cell in planned:
        path, key = args.folder / "cells" / f"{cell.name}.json", key_of(cell, settings, machine)
        held = json.loads(path.read_text()) if path.is_file() else {}
        if "figures" in held and {k: held.get(k) for k in key} == key:
            print(f"{cell.name}: measured already", flush=True)
            continue
        print(f"{cell.name}: {cell.micro_batch} rows a micro-batch, {cell.global_batch} a step", flush=True)
        try:
            result = measure(cell, settings, machine, args.folder, args.allow, args.minutes)
        except (Refused, ValueError) as error:
            print(f"refused: {error}", file=sys.stderr, flush=True)
            result, code = {"failed": str(error)}, 1
        write_atomically(path, json.dumps(key | result, indent=1) + "\n")
        table = write_table(args.folder, planned, facts_of(machine))
        if code:
            break
        utilised = result["figures"]["mfu"]
        print(f"  {result['figures']['tokens_per_second']:,.0f} tokens/s, MFU {'-' if utilised is None else f'{utilised:.1%}'}")
    print(write_table(args.folder, planned, facts_of(machine)).read_text() if code == 0 else f"table so far: {table}")
    return code


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    names = "\n".join(f"  {name:16} {text}" for name, text in (NAMES | WARNINGS).items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mfu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"names of fallbacks (the last {len(WARNINGS)} are warnings: they mark rows and stop nothing):\n{names}",
    )
    parser.add_argument("--folder", type=Path, required=True, help="for results, runs and generated tokens")
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of conf/model")
    parser.add_argument("--gpus", nargs="+", type=int, default=(1, 8))
    parser.add_argument("--layouts", nargs="+", default=tuple(LAYOUTS), choices=tuple(LAYOUTS))
    parser.add_argument("--allow", action="append", default=[], choices=tuple(NAMES), metavar="NAME", help="see below")
    parser.add_argument("--seq-length", type=int, default=2048)
    parser.add_argument("--sample-tokens", type=int, help="length of a sample; default: rows of one sample, as others measure")
    parser.add_argument("--micro-batch", type=int, help="rows; default: the most that fits by mads doctor's estimate")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches a step; default: 4")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=10, help="first steps, not counted")
    parser.add_argument("--log", type=int, default=5, help="steps of one measured interval")
    parser.add_argument("--minutes", type=float, default=30.0, help="a cell that takes longer is ended")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further keys of mads train, for all cells")
    parser.add_argument("--plan", action="store_true", help="print the cells and stop")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all cells are measured, 1 one was refused, 2 bad input or a machine that does not do."""
    args = parse(arguments)
    args.folder = args.folder.absolute()
    try:
        machine = look_at_machine()
        settings = Settings(
            args.seq_length, args.sample_tokens or args.seq_length, args.steps, args.warmup, args.log, args.micro_batch,
            args.accumulation, min((d["memory"] for d in machine.devices), default=80.0), tuple(args.set),
        )  # fmt: skip
        planned = cells(args.models, args.gpus, args.layouts, settings)
        if args.plan:
            for cell in planned:
                print(cell.name, *command(cell, Path("POOL"), Path("RUN")), sep="\n  ")
            return 0
        return measure_all(planned, settings, machine, args)
    except (ConfigError, Refused, ValueError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
