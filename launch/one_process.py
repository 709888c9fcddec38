"""A library's switch that is an environment variable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH = "DISABLE_MULTIPROC"


@contextmanager
def one_process() -> Iterator[None]:
    """lm-evaluation-harness computes inside of this process for as long as the block lasts.

    It would fork it for standard errors by bootstrap. A fork takes the locks of other threads with it (those of torch, tokenizers
    and progress bars), and can wait for them for ever. The numbers are the same.
    """
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before
