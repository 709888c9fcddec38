"""Shared set-up of all tests: one thread, the harness importable, `gpu` tests skipped where there is no CUDA device, what is
exhaustive left to `make test-full`."""

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
    parser.addoption("--all", action="store_true", help="also what is left to `make test-full`: see _only_in_full")


def _only_in_full(item) -> bool:
    """Tests marked `full`, and mutants that need several ranks."""
    mutant = getattr(getattr(item, "callspec", None), "params", {}).get("mutant")
    return item.get_closest_marker("full") is not None or getattr(mutant, "world", 1) > 1


def pytest_collection_modifyitems(config, items):
    if not config.getoption("all"):
        left = {item for item in items if _only_in_full(item)}
        config.hook.pytest_deselected(items=list(left))
        items[:] = [item for item in items if item not in left]
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> str:
    """The directory of the tiny prepared corpus of run_support, for all tests that only read it."""
    from run_support import prepare_small

    return str(prepare_small(tmp_path_factory.mktemp("corpus")))


def pytest_sessionfinish():
    harness.close_pools()
