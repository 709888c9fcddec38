"""`mads compare`: plan, run what is missing, draw."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mads.compare.cell import run_job, write_json
from mads.compare.page import render, render_markdown
from mads.compare.plan import Cell, changed_settings, make_cells, result_path, work_folder, write_plan
from mads.compare.progress import Reporter, error_of
from mads.compare.summary import Comparison, Roles, read_results
from mads.config.comparison import compose_comparison, launcher_overrides, split_overrides, sweep
from mads.config.compose import ConfigError, to_yaml
from mads.logging.metrics import write_atomically

PAGE, TABLE, PLAN, RESULTS = "compare.html", "compare.md", "plan.json", "results"


def _arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="mads compare",
        description="Train strategies x seeds at equal tokens, evaluate them, write a table and a page; goes on where it was.",
        epilog="key=value: a key of the comparison (mads compare --cfg job compare=NAME shows them), an override of every run's "
        "configuration, or of the sweep, as hydra/launcher=submitit_slurm.",
    )
    parser.add_argument("--jobs", type=int, default=1, help="cells that run at once on this machine, one core each; default: 1")
    parser.add_argument("--folder", help="where everything goes; default: runs/compare/NAME")
    parser.add_argument("--only", nargs="+", default=[], metavar="STRATEGY", help="run and draw these strategies only")
    parser.add_argument("--report", action="store_true", help="draw from FOLDER/results, train nothing")
    parser.add_argument("--cfg", choices=["job"], help="print the comparison's configuration and stop")
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()} compare=NAME|path.yaml [key=value ...]"
    known, overrides = parser.parse_known_args(arguments)
    # --only takes all that follows; what is an override is none of its names.
    overrides += [o for o in known.only if "=" in o]
    known.only = [o for o in known.only if "=" not in o]
    if unknown := [o for o in overrides if o.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}; configuration keys are given as key=value")
    if known.jobs < 1:
        parser.error(f"--jobs {known.jobs} must be at least 1")
    return known, overrides


def compare_command(arguments: Sequence[str], has_gpu: bool = False) -> int:
    """The command line; returns 0, or 1 if a cell failed.

    Raises:
        ConfigError, DataError: before anything runs: what cannot work, or a changed configuration, by name.
    """
    known, overrides = _arguments(arguments)
    chosen = [o.split("=", 1)[1] for o in overrides if o.startswith("compare=")]
    if not chosen:
        raise ConfigError("say which comparison: compare=NAME of conf/compare, or compare=path.yaml")
    own, runs, sweeps = split_overrides([o for o in overrides if not o.startswith("compare=")])
    config = compose_comparison(chosen[-1], own)
    if known.cfg:
        print(to_yaml(config), end="")
        return 0
    if wrong := sorted(set(known.only) - set(config.strategies)):
        raise ConfigError(f"--only {' '.join(wrong)}: the strategies are {', '.join(config.strategies)}")
    name = Path(chosen[-1]).stem
    folder = Path(known.folder or f"runs/compare/{name}").resolve()
    if known.report:
        return draw(folder, config, known.only, name, {})
    cells = [c for c in make_cells(config, has_gpu, runs) if not known.only or c.strategy in known.only]
    if changed := changed_settings(cells, folder):
        raise ConfigError(
            f"{folder} holds results of other settings:\n  "
            + "\n  ".join(changed)
            + "\nstart with the same settings to continue, or choose another --folder"
        )
    failed = run_cells(cells, config, folder, known.jobs, sweeps)
    code = draw(folder, config, known.only, name, failed)
    for cell, why in failed.items():
        print(f"mads compare: {cell} failed: {why}", file=sys.stderr)
    return 1 if failed else code


def run_cells(cells: Sequence[Cell], config, folder: Path, jobs: int, sweeps: Sequence[str]) -> dict[str, str]:
    """Run every cell that has no result; returns the error of each that failed."""
    launcher = launcher_overrides(jobs, sweeps)
    waiting = [cell for cell in cells if not result_path(folder, cell.name).is_file()]
    done = len(cells) - len(waiting)
    print(f"{folder}: {len(cells)} cells, {done} done before, {len(waiting)} to run", flush=True)
    if not waiting:
        return {}
    (folder / RESULTS).mkdir(parents=True, exist_ok=True)
    for cell in waiting:  # an error of an earlier start is not one of this
        work = work_folder(folder, cell.name)
        if work.is_dir():
            write_json(work / "state.json", {})
    write_plan(folder / PLAN, cells, config, threads=1)
    with Reporter(folder, cells, lambda text: print(text, flush=True)):
        sweep(run_job, folder / PLAN, [cell.name for cell in waiting], folder / "runs", launcher)
    return {
        cell.name: error_of(folder, cell) or "it ended without a result"
        for cell in waiting
        if not result_path(folder, cell.name).is_file()
    }


def draw(folder: Path, config, only: Sequence[str], name: str, failed: dict[str, str]) -> int:
    """Write the page and the table from the results that are there; returns 1 if there are none."""
    results = read_results(folder / RESULTS, only or None)
    wanted = [f"{s}-{seed}" for s in config.strategies for seed in config.seeds if not only or s in only]
    there = {f"{r['strategy']}-{r['seed']}" for r in results}
    missing = {cell: failed.get(cell, "not run").splitlines()[0] for cell in wanted if cell not in there}
    if not results:
        print(f"mads compare: {folder / RESULTS} holds no result yet, so nothing is drawn", file=sys.stderr)
        return 1
    roles = Roles(config.control, config.treatment, config.primary, tuple(config.apart))
    comparison = Comparison(results, roles, missing)
    write_atomically(folder / PAGE, render(comparison, f"mads compare: {name}"))
    write_atomically(folder / TABLE, render_markdown(comparison, f"mads compare: {name}"))
    print(f"page: {folder / PAGE}\ntable: {folder / TABLE}", flush=True)
    return 0
