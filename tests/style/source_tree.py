"""Reads the repository's sources without running them: which files there are, what each module imports and touches."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"mads": "mads", "conf": "mads.conf", "kernels": "mads.kernels", "launch": "mads.launch"}  # folder -> package
TEXT = {".py", ".md", ".yaml", ".toml", ".txt", ".sh", ".sbatch", ".cfg", ".ini", ""}
SHIPPED = (*PACKAGES, "docs", "docker", "benchmarks", "constraints", ".ci")
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


def text_files(*folders: str) -> list[Path]:
    """Text files below `folders`, and those of the repository's top level."""
    paths = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    paths += [p for p in ROOT.iterdir() if p.is_file() and p.name != ".gitignore"]
    return sorted(p for p in paths if p.suffix in TEXT)


@dataclass(frozen=True)
class Module:
    """What one module imports (dotted names, wherever in the file) and the environment it touches (line numbers)."""

    name: str
    imports: frozenset[str]
    wildcards: tuple[int, ...]
    environment: tuple[int, ...]


def read_module(name: str, source: str, known: Iterable[str] = (), is_package: bool = False) -> Module:
    """Parse a module. `from a import b` counts as a.b if that is one of the `known` modules, as a otherwise; the use of an
    attribute chain such as torch.distributed.barrier counts as an import of torch.distributed."""
    tree, known = ast.parse(source), set(known)
    imports, wildcards, environment = set(), [], []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, name, is_package)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                imports.add(inner if inner in known or inner == "torch.distributed" else base)
                if alias.name == "*":
                    wildcards.append(node.lineno)
                if base == "os" and alias.name in ENVIRONMENT:
                    environment.append(node.lineno)
        elif isinstance(node, ast.Attribute):
            chain = ast.unparse(node)
            if chain.startswith("torch.distributed"):
                imports.add("torch.distributed")
            if node.attr in ENVIRONMENT and isinstance(node.value, ast.Name) and node.value.id == "os":
                environment.append(node.lineno)
    return Module(name, frozenset(imports), tuple(wildcards), tuple(environment))


def _absolute(node: ast.ImportFrom, name: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = name.split(".")
    parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def read_all() -> dict[str, Module]:
    """Every module of the package, parsed."""
    files = modules()
    return {name: read_module(name, path.read_text(), files, path.name == "__init__.py") for name, path in files.items()}


def below(name: str, prefix: str) -> bool:
    """Whether a dotted name is `prefix` or inside of it."""
    return name == prefix or name.startswith(prefix + ".")


def room_of(name: str, rooms: Mapping[str, object]) -> str | None:
    """The longest key of `rooms` that the module belongs to."""
    return max((r for r in rooms if below(name, r)), key=len, default=None)


def not_allowed(module: Module, rooms: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """What of mads a module imports although neither its room nor the room's list holds it."""
    room = room_of(module.name, rooms)
    if room is None:
        yield f"{module.name} belongs to no room of the import rule"
        return
    for imported in sorted(module.imports):
        if below(imported, "mads") and not any(below(imported, allowed) for allowed in (room, *rooms[room])):
            yield f"{module.name} imports {imported}; {room} may import {', '.join(rooms[room]) or 'nothing of mads'}"


def reaches(start: str, imports: Mapping[str, frozenset[str]]) -> set[str]:
    """Everything that importing `start` loads, over any number of steps; a submodule loads its parents too."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parts = name.split(".")
        waiting += [".".join(parts[:i]) for i in range(1, len(parts))]
        waiting += imports.get(name, ())
    return seen
