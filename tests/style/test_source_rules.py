"""Habits that a reader relies on: sizes, no machine's paths, no loose ends, tests that assert, names that are explained."""

import ast
import fnmatch
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from source_tree import PACKAGES, ROOT, SHIPPED, modules, text_files

FILE_LINES, FUNCTION_LINES, LINE_CHARACTERS = 500, 80, 130
MACHINE_PATH = re.compile(r"(?<![\w.~$}<-])/(?:home|root|work|Users|tmp|mnt|scratch|srv)(?=/|\b)")
REDACTS_PATHS = {"mads/logging/environment.py"}  # holds the patterns by which home folders are removed from records
REGISTRY = re.compile(
    "|".join(["py" + r"pi\.org", "python" + "hosted", "anaconda" + r"\.org", "index" + "-url", "art" + "ifactory"])
)
LOOSE_END = re.compile(r"\b(TO" + "DO|FIX" + "ME|X" + r"XX|HA" + r"CK)\b")
PYTHON = sorted(p for folder in (*PACKAGES, "tests", "benchmarks") for p in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def lines_with(pattern, paths) -> list[str]:
    return [f"{name(p)}:{i}" for p in paths for i, line in enumerate(p.read_text().splitlines(), 1) if pattern.search(line)]


def test_files_functions_and_lines_stay_small():
    wrong = []
    for path in PYTHON:
        source = path.read_text()
        lines = source.splitlines()
        if len(lines) > FILE_LINES:
            wrong.append(f"{name(path)} has {len(lines)} lines")
        wrong += [f"{name(path)}:{i} has {len(x)} characters" for i, x in enumerate(lines, 1) if len(x) > LINE_CHARACTERS]
        for f in functions(ast.parse(source)):
            if f.end_lineno - f.lineno + 1 > FUNCTION_LINES:
                wrong.append(f"{name(path)}:{f.name} has {f.end_lineno - f.lineno + 1} lines")
    assert len(PYTHON) > 100 and wrong == []


def test_no_path_of_a_machine():
    shipped = [p for p in text_files(*SHIPPED) if name(p) not in REDACTS_PATHS]
    assert lines_with(MACHINE_PATH, shipped) == []
    assert lines_with(re.compile(re.escape(str(ROOT)) + r"\b"), text_files("tests")) == []
    assert all(MACHINE_PATH.search(bad) for bad in ("x = '/home/me/data'", "cd /work/here", "dir: /mnt/a", "--out=/tmp"))
    assert not any(MACHINE_PATH.search(good) for good in ("data/home/x", "${dir}/tmp", "#!/usr/bin/env bash", "w/work"))


def test_no_host_of_a_package_registry():
    assert lines_with(REGISTRY, text_files(*SHIPPED, "tests")) == []
    assert REGISTRY.search("pip install --index" + "-url=x")


def test_no_loose_ends():
    assert lines_with(LOOSE_END, text_files(*SHIPPED, "tests")) == []
    assert LOOSE_END.search("# TO" + "DO: later")


# ---------------------------------------------------------------- tests assert


def asserting_names(trees) -> set[str]:
    """Names of functions that assert something, themselves or through another function that they mention."""
    bodies: dict[str, list] = {}
    for tree in trees:
        for f in functions(tree):
            bodies.setdefault(f.name, []).append(f)
    found = {n for n, fs in bodies.items() if any(_asserts(f) for f in fs)}
    while True:
        more = {n for n, fs in bodies.items() if n not in found and any(_mentions(f, found) for f in fs)}
        if not more:
            return found
        found |= more


def _asserts(f) -> bool:
    if any(isinstance(node, ast.Assert) for node in ast.walk(f)):
        return True
    calls = [ast.unparse(node.func) for node in ast.walk(f) if isinstance(node, ast.Call)]
    return any(c.startswith("pytest.") and c.split(".")[1] in ("raises", "fail", "warns") or ".assert_" in c for c in calls)


def _mentions(f, names) -> bool:
    return any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(f))


def test_every_test_asserts_something():
    trees = {path: ast.parse(path.read_text()) for path in PYTHON if "tests" in path.relative_to(ROOT).parts}
    asserting = asserting_names(trees.values())
    tests = [(path, f.name) for path, tree in trees.items() for f in functions(tree) if f.name.startswith("test_")]
    assert len(tests) > 300
    assert [f"{name(path)}:{test}" for path, test in tests if test not in asserting] == []


@pytest.mark.parametrize(
    "source, asserting",
    [
        ("def test_a():\n    run_ranks(2, work)\ndef work():\n    return 1", False),
        ("def test_a():\n    run_ranks(2, check)\ndef check():\n    assert 1", True),
        ("def test_a():\n    print(1)", False),
        ("def test_a():\n    with pytest.raises(ValueError):\n        f()", True),
        ("def test_a():\n    np.testing.assert_allclose(a, b)", True),
    ],
)
def test_the_checker_of_assertions_can_tell(source, asserting):
    assert ("test_a" in asserting_names([ast.parse(source)])) == asserting


def test_names_of_test_files_are_unique():
    names = [p.name for p in PYTHON if "tests" in p.relative_to(ROOT).parts]
    assert sorted(names) == sorted(set(names))


# ---------------------------------------------------------------- modules can be imported and say what they are


NEEDS = {"mads.kernels.cross_entropy_programs": "triton"}  # of the extra gpu; imported only where it is there


@pytest.mark.parametrize("module", [m for m in modules() if not m.endswith("__main__")])
def test_every_module_can_be_imported(module):
    if module in NEEDS:
        pytest.importorskip(NEEDS[module])
    assert importlib.import_module(module).__name__ == module


LONG_METHOD = 8  # lines; a shorter method, and one that another class documents under the same name, may go without


def undocumented(sources: dict[str, str]) -> list[str]:
    """Modules, public classes and functions, and long public methods that carry no docstring."""
    trees = {where: ast.parse(source) for where, source in sources.items()}
    classes = [(w, c) for w, t in trees.items() for c in t.body if isinstance(c, ast.ClassDef) and not c.name.startswith("_")]
    explained = {m.name for _, c in classes for m in functions(ast.Module(c.body, [])) if ast.get_docstring(m)} | {"forward"}
    missing = [w for w, t in trees.items() if t.body and not ast.get_docstring(t)]
    for where, tree in trees.items():
        for node in tree.body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                missing.append(f"{where}:{node.name}")
    for where, owner in classes:
        for m in owner.body:
            if isinstance(m, ast.FunctionDef) and not m.name.startswith("_") and m.name not in explained:
                if m.end_lineno - m.lineno + 1 > LONG_METHOD:
                    missing.append(f"{where}:{owner.name}.{m.name}")
    return missing


def test_public_names_are_explained():
    assert undocumented({name(path): path.read_text() for path in modules().values()}) == []


def test_the_checker_of_docstrings_can_tell():
    body = "\n".join("        x = 1" for _ in range(9))
    methods = f'    """A."""\n    def long(self):\n{body}\n    def short(self): pass\n'
    source = f'"""M."""\ndef f(): pass\ndef _g(): pass\nclass A:\n{methods}'
    assert undocumented({"m.py": source, "n.py": "x = 1"}) == ["n.py", "m.py:f", "m.py:A.long"]


def skipped(files, patterns):
    """Test files in folders that pytest does not descend into."""
    return [f for f in files if any(fnmatch.fnmatch(part, p) for part in f.parent.parts for p in patterns)]


def test_pytest_descends_into_every_folder_of_tests():
    """Its own list of folders to skip has "dist": the distributed tests would never run, and nobody would notice."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    files = [p.relative_to(ROOT) for p in PYTHON if p.name.startswith("test_")]
    assert len(files) > 100 and skipped(files, options["norecursedirs"]) == []
    assert skipped(files, ["dist"]) != []


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_is_content(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "--quiet", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
