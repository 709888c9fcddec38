"""`mads report RUN [--compare RUN2 ...]` and the function behind it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mads.logging.metrics import write_atomically
from mads.report.cost import gauge_section, provenance_section, time_section
from mads.report.page import document
from mads.report.read import Run, read_runs
from mads.report.selection import decision_section, direction_section, label_section, mix_section, theta_section
from mads.report.training import eval_section, headline, loss_section

PAGE = "report.html"


def render(runs: list[Run]) -> str:
    """The page for runs[0], with the others drawn beside it where they can be compared."""
    run = runs[0]
    sections = [
        ("loss", "Training loss", loss_section(runs)),
        ("heldout", "Held-out loss", eval_section(runs, "heldout", "heldout_mean", "held-out loss", "domain")),
        ("references", "Reference tasks", eval_section(runs, "references", "references_mean", "reference loss", "task")),
        ("theta", "Agents", theta_section(run)),
        ("labels", "Labels", label_section(run)),
        ("mix", "Chosen mix", mix_section(run)),
        ("direction", "Reward direction", direction_section(run)),
        ("decisions", "Decisions", decision_section(run)),
        ("time", "Time", time_section(runs)),
        ("gauges", "Optimizer and throughput", gauge_section(runs)),
        ("provenance", "Configuration and environment", provenance_section(run)),
    ]
    return document(f"mads report: {run.name}", headline(runs), sections)


def write_report(run_dir: str | Path, compare: Sequence[str | Path] = ()) -> Path:
    """Write report.html into a run folder; everything in it comes from the folders' files.

    Args:
        run_dir: the run the page is about
        compare: other run folders, drawn in the same loss charts (for example the random control)

    Returns:
        the page's path.

    Raises:
        DataError: if a folder is not a run's, is given twice, or a file in it is damaged.
    """
    runs = read_runs([run_dir, *compare])
    path = Path(run_dir) / PAGE
    write_atomically(path, render(runs))
    return path


def report_command(args: list[str]) -> int:
    """The command line; returns 0.

    Raises:
        DataError, OSError: as `write_report`.
    """
    parser = argparse.ArgumentParser(prog="mads report", description="Write RUN/report.html, one self-contained page.")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--compare", nargs="+", default=[], metavar="RUN", help="other run folders for the loss charts")
    options = parser.parse_args(args)
    print(f"report: {write_report(options.run, options.compare)}")
    return 0
