"""The scheme behind tests/mutants/: break one thing, run a named check, expect it to go red.

A mutant is one entry of the list in test_mutants.py:

    Mutant(
        "what is broken",                              # shown as the test's id
        "mads.tensor.init:shard",                      # module:attribute[.attribute] that is replaced, where it is looked up
        lambda original: replacement,                  # gets the real thing, returns the broken one
        "dist/test_tensor_layers.py:check_init",       # file under tests/ and the check function that must fail
        world=4,                                       # ranks that the check runs on; 1 = in this process
        args=(),                                       # arguments of the check
    )

The check is a top-level function (the body of a named test) that raises when the invariant is broken. On `world` ranks the mutant
is applied in every worker for the length of the check, and one red rank is enough: ranks that it leaves waiting in a collective
are ended after 20 s, so prefer a check that fails on all ranks. Only the kinds of exceptions in `red` count (a failed assertion
or pytest.raises unless the mutant says otherwise): a patch that is itself broken, say with a TypeError, does not pass for a
caught bug.

A class attribute that is a staticmethod must be replaced by a staticmethod. A name that was imported with `from a import b` must
be replaced in the module that uses it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutant:
    name: str
    target: str
    replace: Callable[[Any], Any]
    check: str
    world: int = 1
    args: tuple = ()
    red: tuple[str, ...] = ("AssertionError", "Failed")

    def check_function(self) -> Callable:
        file, function = self.check.split(":")
        path = TESTS / file
        if str(path.parent) not in sys.path:  # pytest adds the folders of the files it collects, and only those
            sys.path.append(str(path.parent))
        return getattr(importlib.import_module(path.stem), function)

    @contextmanager
    def applied(self):
        module, attributes = self.target.split(":")
        owner: Any = importlib.import_module(module)
        *path, last = attributes.split(".")
        for name in path:
            owner = getattr(owner, name)
        original = vars(owner)[last]
        setattr(owner, last, self.replace(original))
        try:
            yield
        finally:
            setattr(owner, last, original)
