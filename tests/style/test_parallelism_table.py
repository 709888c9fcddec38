"""The table of invariants in docs/parallelism.md names tests and mutants that exist, and leaves no invariant out."""

import ast
import re
from pathlib import Path

import pytest
from source_tree import ROOT

PAGE = ROOT / "docs" / "parallelism.md"
COUNTS = {"T": 10, "V": 8, "S": 5, "R": 6, "G": 4, "Z": 5, "D": 6, "P": 7, "K": 7, "X": 8, "N": 3}
NUMBERS = ["G0", *(f"{letter}{i}" for letter, count in COUNTS.items() for i in range(1, count + 1))]
HEAD = ["number", "what must hold", "tests", "mutants", "tolerance"]
NOT_COVERED = re.compile(r"not covered: .{8,}")
NO_MUTANT = re.compile(r"none: .{8,}")


def rows_of(text: str) -> list[dict[str, str]]:
    """Rows of the table whose head is HEAD, by column."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    start = lines.index(HEAD)
    return [dict(zip(HEAD, cells)) for cells in lines[start + 2 :] if len(cells) == len(HEAD)]


def functions_by_file(folder: Path) -> dict[str, set[str]]:
    """Base name of a test file (they are unique) -> its test functions."""
    return {
        path.name: {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        for path in folder.rglob("test_*.py")
    }


def mutants_in(folder: Path) -> set[str]:
    """Names of all mutants: the first argument of every call in a list MUTANTS."""
    lists = [
        node.value
        for path in folder.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MUTANTS"
    ]
    calls = [entry for each in lists for entry in getattr(each, "elts", ()) if isinstance(entry, ast.Call) and entry.args]
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}


def complaints(text: str, tests: dict[str, set[str]], mutants: set[str]) -> list[str]:
    """What is wrong with the table of a page."""
    wrong, rows = [], rows_of(text)
    found = [row["number"] for row in rows]
    wrong += [f"{number} is missing" for number in NUMBERS if number not in found]
    wrong += [f"{number} is no invariant, or there twice" for number in found if number not in NUMBERS or found.count(number) > 1]
    for row in rows:
        number = row["number"]
        named = re.findall(r"`([^`]+)`", row["tests"])
        if not named and not NOT_COVERED.fullmatch(row["tests"]):
            wrong.append(f"{number} names no test and gives no reason")
        for test in named:
            file, _, function = test.partition("::")
            if function not in tests.get(file, ()) or not function.startswith("test_"):
                wrong.append(f"{number}: there is no test {test}")
        broken = re.findall(r"`([^`]+)`", row["mutants"])
        if named and not broken and not NO_MUTANT.fullmatch(row["mutants"]):
            wrong.append(f"{number} names no mutant and gives no reason")
        wrong += [f"{number}: there is no mutant {mutant!r}" for mutant in broken if mutant not in mutants]
        if len(row["what must hold"]) < 20 or (named and not row["tolerance"]):
            wrong.append(f"{number} lacks its words or its tolerance")
    return wrong


def test_the_table_names_what_exists_and_every_invariant():
    mutants = mutants_in(ROOT / "tests" / "mutants")
    assert len(mutants) > 80 and len(NUMBERS) == 70
    assert complaints(PAGE.read_text(), functions_by_file(ROOT / "tests"), mutants) == []


@pytest.mark.parametrize(
    "row, complaint",
    [
        ("| G0 | groups equal an oracle | `test_a.py::test_gone` | `broken` | exact |", "no test test_a.py::test_gone"),
        ("| G0 | groups equal an oracle | `test_a.py::helper` | `broken` | exact |", "no test test_a.py::helper"),
        ("| G0 | groups equal an oracle | `test_a.py::test_it` | `gone` | exact |", "no mutant 'gone'"),
        ("| G0 | groups equal an oracle | `test_a.py::test_it` | | exact |", "names no mutant"),
        ("| G0 | groups equal an oracle | | `broken` | exact |", "names no test"),
        ("| G0 | groups equal an oracle | not covered: | | |", "names no test"),
        ("| G0 | groups | `test_a.py::test_it` | `broken` | exact |", "lacks its words"),
        ("| G0 | groups equal an oracle | `test_a.py::test_it` | `broken` | |", "or its tolerance"),
        ("| G9 | groups equal an oracle | `test_a.py::test_it` | `broken` | exact |", "G0 is missing"),
    ],
)
def test_the_checker_of_the_table_can_tell(row, complaint):
    known = {"test_a.py": {"test_it", "helper"}}
    good = "| G0 | groups equal an oracle | `test_a.py::test_it` | `broken` | exact |"
    rest = [f"| {n} | something that must hold | not covered: no code for it yet | | |" for n in NUMBERS if n != "G0"]
    page = lambda first: "\n".join([f"| {' | '.join(HEAD)} |", "|---|---|---|---|---|", first, *rest])
    assert complaints(page(good), known, {"broken"}) == []
    assert complaint in " ".join(complaints(page(row), known, {"broken"}))
