"""Shared set-up of all tests: one thread, the harness importable, `gpu` tests skipped where there is no CUDA device, mutants that
need several ranks left to `make mutants`."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: with two busy threads per process OpenMP spins and everything crawls
sys.path.insert(0, str(Path(__file__).parent))

import harness  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--mutants", choices=("quick", "all"), default="quick", help="quick: only those of one process")


def pytest_collection_modifyitems(config, items):
    if config.getoption("mutants") == "quick":
        left = [item for item in items if getattr(getattr(item, "callspec", None), "params", {}).get("mutant") is not None]
        left = [item for item in left if item.callspec.params["mutant"].world > 1]
        if left:
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if item not in set(left)]
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_sessionfinish():
    harness.close_pools()
