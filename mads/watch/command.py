"""`mads watch RUN`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.live import Live

from mads.data.schema import DataError
from mads.watch.follow import Follower
from mads.watch.frame import frame


def watch_command(arguments: Sequence[str]) -> int:
    """Show a run until it ends or the user has seen enough (Ctrl-C); returns the exit code.

    Raises:
        DataError: no folder of a run, or a file in it is damaged.
    """
    parser = argparse.ArgumentParser(
        prog="mads watch",
        description="A view of a run, from the files of its folder: progress, loss, speed, phases, theta, label weights and mix. "
        "It reads only, so it can be left and started again at any time, from any machine that sees the folder.",
    )
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--once", action="store_true", help="print one frame; so it is, too, where the output is no terminal")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks; default: 2")
    known = parser.parse_args(arguments)
    if not known.interval > 0:
        raise DataError(f"--interval={known.interval} must be above 0 seconds")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # labels need not be in the terminal's encoding
    console = Console(highlight=False, emoji=False, markup=False)
    run = Follower(known.run)
    run.read()
    if not known.once and console.is_terminal and not console.is_dumb_terminal and run.metrics.end is None:
        _follow(run, console, known.interval)
    console.print(_frame(run, console))
    return 0


def _follow(run: Follower, console: Console, interval: float) -> None:
    """On a screen of its own, which is left as it was found."""
    try:
        with Live(_frame(run, console, True), console=console, screen=True, auto_refresh=False) as live:
            while run.metrics.end is None:
                live.update(_frame(run, console, True), refresh=True)
                time.sleep(interval)
                run.read()
    except KeyboardInterrupt:
        pass


def _frame(run: Follower, console: Console, fit: bool = False) -> RenderableType:
    return frame(run, time.time(), console.height if fit else None, console.encoding.startswith("utf"))
