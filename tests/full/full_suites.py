"""Finds the suites of a folder: modules that define cases() and run_case()."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
FOLDERS = ("", "dist", "mutants", "unit/console", "unit/topology", "unit/train", "fuzz")  # whose modules suites may import


class Suite:
    """One module of a folder, and what it may leave out."""

    def __init__(self, name: str):
        self.name = name
        self.module = importlib.import_module(name)
        self.limit_s: float | None = getattr(self.module, "LIMIT_S", None)
        self.rows: bool = getattr(self.module, "ROWS", False)
        self.title = (self.module.__doc__ or name).strip().splitlines()[0].rstrip(".")

    def cases(self) -> list[tuple[str, dict]]:
        """(name, case) pairs.

        Raises:
            ValueError: if two cases have one name.
        """
        pairs = [(self.name_of(case), case) for case in self.module.cases()]
        if len({name for name, _ in pairs}) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"cases of {self.name} share names: {sorted({n for n in names if names.count(n) > 1})[:5]}")
        return pairs

    def name_of(self, case: dict) -> str:
        if hasattr(self.module, "name_of"):
            return self.module.name_of(case)
        return " ".join(f"{key}={json.dumps(value, sort_keys=True)}" for key, value in case.items())

    def group_of(self, case: dict) -> str:
        return self.module.group_of(case) if hasattr(self.module, "group_of") else "all"


def prepare_path(folder: Path) -> None:
    """Let suites import what tests import."""
    for place in (*(TESTS / sub for sub in FOLDERS), folder):
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))


def load(folder: Path, wanted: list[str] | None = None) -> list[Suite]:
    """The suites of a folder, or those of them that are wanted, by name.

    Raises:
        ValueError: for a suite that is not there.
    """
    prepare_path(folder)
    found = []
    for path in sorted(folder.glob("*.py")):
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        if {"cases", "run_case"} <= functions:
            found.append(path.stem)
    if unknown := sorted(set(wanted or ()) - set(found)):
        raise ValueError(f"no suite {unknown}; there are {found}")
    return [Suite(name) for name in found if not wanted or name in wanted]
