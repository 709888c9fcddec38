"""Shared set-up of all tests: one thread, the harness importable, `gpu` tests skipped where there is no CUDA device."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: with two busy threads per process OpenMP spins and everything crawls
sys.path.insert(0, str(Path(__file__).parent))

import harness  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_sessionfinish():
    harness.close_pools()
