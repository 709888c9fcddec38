"""What run.py knows of its cases: the record of results at one state of the sources, and the pages made from it."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("mads", "kernels", "conf", "launch", "tests", "constraints", "pyproject.toml")  # pages and docs change no result
PACKAGES = ("torch", "deepspeed", "numpy")
ERROR_LINES = 12


@dataclass(frozen=True)
class Source:
    """commit: short hash; changed: whether the sources differ from it; digest: of the sources' contents."""

    commit: str
    changed: bool
    digest: str

    @property
    def label(self) -> str:
        return f"commit {self.commit}{' with changes' if self.changed else ''}, sources {self.digest}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def source_state(extra: list[Path] = ()) -> Source:
    """The state of the sources: two trees with the same digest give the same results, whatever their commits."""
    h = hashlib.sha256()
    try:
        listed = _git("ls-files", "-co", "--exclude-standard", "-z", "--", *SOURCES).split("\0")
        commit, changed = (
            _git("rev-parse", "--short", "HEAD").strip(),
            bool(_git("status", "--porcelain", "--", *SOURCES).strip()),
        )
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        places = [path for name in SOURCES for path in ((ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name])]
        listed = [str(path.relative_to(ROOT)) for path in places if "__pycache__" not in path.parts]
        commit, changed = "unknown", False
    paths = {ROOT / name for name in listed if name} | {path for folder in extra for path in folder.glob("*.py")}
    for path in sorted(paths):
        if path.is_file():
            h.update(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name).encode() + b"\0")
            h.update(hashlib.sha256(path.read_bytes()).digest())
    return Source(commit, changed, h.hexdigest()[:12])


class Record:
    """Results by suite and name, the last of each. Lines that a kill cut short are skipped."""

    def __init__(self, folder: Path, source: Source):
        folder.mkdir(parents=True, exist_ok=True)
        self.source = source
        self.path = folder / f"{source.commit}-{source.digest}.jsonl"
        self._last: dict[tuple[str, str], dict] = {}
        # Results of an equal tree under another commit count too.
        files = sorted(folder.glob(f"*-{source.digest}.jsonl"), key=lambda path: path.stat().st_mtime)
        for path in files:
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self._last[entry["suite"], entry["name"]] = entry
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with open(self.path, "a") as f:
                f.write("\n")

    def add(self, suite: str, name: str, case: dict, answer: dict, seconds: float) -> None:
        entry = {"suite": suite, "name": name, "case": case, **answer, "seconds": round(seconds, 3)}
        with open(self.path, "a") as f:
            f.write(json.dumps(entry) + "\n")
            f.flush()
            os.fsync(f.fileno())
        self._last[suite, name] = entry

    def get(self, suite: str, name: str) -> dict | None:
        return self._last.get((suite, name))

    def status(self, suite: str, name: str) -> str:
        """passed, failed, timeout, died, or `not run`."""
        entry = self.get(suite, name)
        return entry["status"] if entry else "not run"


# ---------------------------------------------------------------- pages


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """What of a case's values is a number."""
    return {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def worst(suite, entries: list[dict]) -> list[tuple[str, str, float, str]]:
    """(group, what, the largest value, its case) of every number that the passed cases measured."""
    found: dict[tuple[str, str], tuple[float, str]] = {}
    for entry in entries:
        for what, value in numbers(entry.get("values", {})).items():
            key = (suite.group_of(entry["case"]), what)
            if key not in found or not value <= found[key][0]:  # NaN is the worst
                found[key] = (value, entry["name"])
    return [(group, what, value, name) for (group, what), (value, name) in sorted(found.items())]


def _cell(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(_cell(v) for v in row)} |" for row in rows), ""]


def _rows(suite, passed: list[dict]) -> list[str]:
    """The cases with their words, for a suite that wants them listed; a case whose values hold `rows` gives several lines."""
    if not suite.rows:
        return []
    listed = [{"case": e["name"]} | row for e in passed for row in e["values"].get("rows", [e["values"]])]
    keys = list(dict.fromkeys(key for row in listed for key in row if key != "rows"))
    return _table(keys, [[row.get(key, "") for key in keys] for row in listed])


def write_page(folder: Path, suite, record: Record) -> Path | None:
    """benchmarks/full/<suite>.md from all that is recorded at these sources; nothing if no case was run."""
    names = [name for name, _ in suite.cases()]
    entries = [entry for name in names if (entry := record.get(suite.name, name))]
    if not entries:
        return None
    passed = [e for e in entries if e["status"] == "passed"]
    failed = [e for e in entries if e["status"] != "passed"]
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    facts = [
        ["command", f"`python tests/full/run.py --suite {suite.name}`"],
        ["date", datetime.date.today().isoformat()],
        ["commit", record.source.label.removeprefix("commit ")],
        ["hardware", f"{os.cpu_count()} cores, CPU ({platform.machine()})"],
        ["packages", f"{versions}, Python {platform.python_version()}"],
        ["cases", f"{len(names)}: {len(passed)} passed, {len(failed)} failed, {len(names) - len(entries)} not run"],
        ["seconds of all cases", f"{sum(e['seconds'] for e in entries):.0f}"],
    ]
    lines = [f"# {suite.title}", "", *_table(["", ""], facts)]
    if found := worst(suite, passed):
        lines += ["The largest value of each number that was measured, over the cases of a group:", ""]
        lines += _table(["group", "number", "largest", "case"], [list(row) for row in found])
    lines += _rows(suite, passed)
    if failed:
        lines += ["## Failures", ""]
        for entry in failed:
            tail = entry.get("error", "").strip().splitlines()[-ERROR_LINES:]
            lines += [f"### {entry['name']}: {entry['status']}", "", *(f"    {line}" for line in tail), ""]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{suite.name}.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path
