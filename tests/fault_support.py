"""Runs with faults (fault_ranks.py), and what they are compared with: the undisturbed run of the same layout."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from fault_ranks import KILLED
from run_support import OVERRIDES, REWARD, curve, prepare_small

STEPS = 10
RUN = [
    f"train.steps={STEPS}",
    "selection.interval=3",
    "train.eval_interval=4",
    "checkpoint.interval=2",
    "logging.console=true",
]
TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
# Layout -> ranks and overrides.
LAYOUTS = {
    "dp2 zero0": (2, ["parallel=zero0"]),
    "dp2 zero1": (2, ["parallel=zero1"]),
    "dp2 zero2": (2, ["parallel=zero2"]),
    "dp2 zero3": (2, ["parallel=zero3"]),
    "tp2 zero1": (2, ["parallel=zero1", TENSOR]),
    "pp2 zero1": (2, ["parallel=zero1", PIPELINE]),
    "alone zero1": (1, ["parallel=zero1"]),
    "dp2 tp2 zero2": (4, ["parallel=zero2", TENSOR]),
}
# Places where a step begins with them; after a resume at step s they come at s too, the others only behind it.
BEGIN = ("step", "selection", "reward")
WEIGHTS = {"step": 4, "save": 3, "write": 4, "selection": 3, "reward": 3, "evaluation": 2, "start": 3, "log": 1, "end": 1}
REACH = 5  # steps behind the resume in which the next kill falls
DAMAGES = ("flip", "truncate", "remove", "manifest")


def _mounts_allowed() -> bool:
    test = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    try:
        return subprocess.run(test, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class Nursery:
    """The process that forks ranks, in a mount namespace of its own where that is allowed: what is mounted there goes with it."""

    def __init__(self):
        self.mounts = _mounts_allowed()
        own = ["unshare", "-m"] if self.mounts else []
        script = Path(__file__).with_name("fault_ranks.py")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([*own, sys.executable, str(script)], text=True, **pipes)

    def life(self, world, overrides, log, faults=(), linger=0.3, trace=None, limit_s=150.0) -> list[int]:
        """Exit codes in rank order."""
        told = {"world": world, "overrides": overrides, "log": str(log), "faults": list(faults)}
        told |= {"linger": linger, "trace": str(trace) if trace else None, "limit_s": limit_s}
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["codes"]

    def mount(self, *arguments: str) -> None:
        """Run `mount` for the ranks."""
        subprocess.run(["nsenter", "-t", str(self.process.pid), "-m", "mount", *arguments], check=True)

    def seen(self, path: Path) -> Path:
        """The path by which this process sees what the ranks see at `path`."""
        return Path(f"/proc/{self.process.pid}/root{path}") if self.mounts else path

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@functools.cache
def nursery() -> Nursery:
    made = Nursery()
    atexit.register(made.close)
    return made


@functools.cache
def home() -> Path:
    """A folder with the prepared corpus, for all runs of this process."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    prepare_small(folder)
    return folder


def settings(layout: str, run_dir: Path, *overrides: str) -> list[str]:
    return [*OVERRIDES, *REWARD, f"data.dir={home()}/prepared", f"run_dir={run_dir}", *LAYOUTS[layout][1], *RUN, *overrides]


# ---------------------------------------------------------------- checkpoints, by other code than the product's


def folders(run_dir: Path) -> dict[int, Path]:
    """Step -> folder of a checkpoint, whole or not."""
    found = [(re.fullmatch(r"step-(\d+)", p.name), p) for p in (run_dir / "checkpoints").glob("*")]
    return {int(match[1]): path for match, path in found if match}


def whole(folder: Path) -> dict[str, str] | None:
    """File -> SHA-256 if all files are as the manifest says, else None."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    except (OSError, ValueError, KeyError):
        return None
    return found if all(found[name] == entry["sha256"] for name, entry in files.items()) else None


def newest(run_dir: Path) -> int | None:
    """The step of the newest whole checkpoint."""
    return max((step for step, folder in folders(run_dir).items() if whole(folder)), default=None)


def damage(folder: Path, kind: str, rng: random.Random) -> str:
    """Damage one checkpoint; what was done, in words."""
    file = folder / rng.choice(sorted(p.name for p in folder.iterdir() if p.name != "manifest.json"))
    if kind == "manifest":
        file, kind = folder / "manifest.json", rng.choice(["truncate", "remove"])
    raw = bytearray(file.read_bytes())
    place = rng.randrange(len(raw))
    if kind == "flip":
        raw[place] ^= 1 << rng.randrange(8)
        file.write_bytes(raw)
    elif kind == "truncate":
        file.write_bytes(raw[:place])
    else:
        file.unlink()
    return f"{kind} {file.name}" + (f" at byte {place}" if kind != "remove" else "")


# ---------------------------------------------------------------- the undisturbed run


@dataclass
class Reference:
    """curve: losses as hexadecimal floats, evaluations, decisions with the hash of their ids; files: step -> file -> SHA-256;
    calls: (rank, place, step) -> numbers of calls (any, file)."""

    curve: list
    files: dict[int, dict[str, str]]
    calls: dict[tuple[int, str, int], tuple[int, int]]


def exact(value):
    """Every float by its bits."""
    if isinstance(value, dict):
        return {k: exact(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [exact(v) for v in value]
    return value.hex() if isinstance(value, float) else value


@functools.cache
def reference(layout: str) -> Reference:
    """Of one undisturbed run, made once in this process."""
    world, name = LAYOUTS[layout][0], layout.replace(" ", "-")
    run_dir, counts, log = (home() / f"{kind}-{name}" for kind in ("reference", "calls", "log"))
    counts.mkdir()
    codes = nursery().life(world, settings(layout, run_dir, "checkpoint.keep_every=2"), log, trace=counts)
    assert codes == [0] * world, log.read_text()[-3000:]
    calls = {}
    for rank in range(world):
        for place, step, any_, file in json.loads((counts / f"{rank}.json").read_text()):
            calls.setdefault((rank, place, step), (any_, file))
    files = {step: whole(folder) for step, folder in folders(run_dir).items()}
    assert sorted(files) == list(range(2, STEPS + 1, 2)) and all(files.values())
    return Reference(exact(curve(run_dir)), files, calls)


# ---------------------------------------------------------------- chains of kills


@dataclass
class Chain:
    """A run that is killed and started again and again. lines: what happened, in words; kills by place; faults: of every life."""

    layout: str
    run_dir: Path
    rng: random.Random
    lines: list[str] = field(default_factory=list)
    kills: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    fallbacks: int = 0
    places: dict[str, int] = field(default_factory=dict)
    faults: tuple[dict, ...] = ()

    def __post_init__(self):
        self.world, self.reference = LAYOUTS[self.layout][0], reference(self.layout)

    def draw_kill(self) -> tuple[dict, str]:
        """Where the next life ends: a place that it will come to, and a call in it."""
        begin, rng = newest(self.run_dir) or 0, self.rng
        place = rng.choices(list(self.places), list(self.places.values()))[0]
        rank = 0 if place in ("log", "end") else rng.randrange(self.world)
        steps = [s for (r, p, s) in self.reference.calls if (r, p) == (rank, place) and begin <= s <= begin + REACH]
        steps = [s for s in steps if place in BEGIN or s > begin or (begin == 0 and place == "evaluation")]
        if place in ("start", "end") or not steps or begin == STEPS:
            place, steps = "end" if place == "end" and begin < STEPS else "start", [0]
        step, calls = rng.choice(sorted(steps)), rng.choice(("any", "file"))
        most = self.reference.calls.get((rank, place, step), (1, 1))[calls == "file"]
        fault = {"kind": "kill", "rank": rank, "place": place, "step": step, "calls": calls, "at": rng.randrange(max(1, most))}
        return fault, f"rank {rank} in {place} at step {step}, {calls} call {fault['at']} of {most}"

    def kill_once(self, number: int) -> None:
        """One life that ends by SIGKILL."""
        fault, words = self.draw_kill()
        linger, asynchronous = self.rng.choice((0.0, 0.2, 0.2, 1.0)), self.rng.random() < 0.7
        expected = newest(self.run_dir)
        log = self.run_dir.with_suffix(f".{number}")
        overrides = settings(self.layout, self.run_dir, f"checkpoint.asynchronous={str(asynchronous).lower()}")
        codes = nursery().life(self.world, overrides, log, [*self.faults, fault], linger)
        self.lines.append(f"kill {words}; from {expected}; codes {codes}; saved {newest(self.run_dir)}")
        assert codes[fault["rank"]] == KILLED, f"{self.lines}\n{log.read_text()[-3000:]}"
        self.kills[fault["place"]] = self.kills.get(fault["place"], 0) + 1
        self.check_life(log, expected, number)

    def check_life(self, log: Path, expected: int | None, number: int) -> None:
        """It went on from the newest whole checkpoint, told what it passed over, and left only whole ones behind."""
        said = log.read_text()
        assert "Traceback" not in said or "Connection" in said or "peer" in said or "closed" in said, (self.lines, said[-3000:])
        for step in re.findall(r"resuming step-(\d+)", said):
            assert int(step) == expected, (self.lines, step, expected)
        if "passed over" in said:
            assert self.damaged and f"going on from step-{expected:08d}" in said, (self.lines, said)
            self.fallbacks += 1
        for step, folder in folders(self.run_dir).items():
            found = whole(folder)
            if found is None:  # damaged by us, and not yet set aside
                assert folder.name in self.damaged, (self.lines, folder)
                continue
            self.damaged.discard(folder.name)  # saved again
            assert found == self.reference.files[step], (self.lines, step)
        saved = newest(self.run_dir) or 0
        assert saved >= (expected or 0), (self.lines, saved)

    def damage_newest(self) -> None:
        """Damage the newest checkpoint, if there is another one to go on from."""
        there = {step: folder for step, folder in folders(self.run_dir).items() if whole(folder)}
        if len(there) < 2:
            return
        step = max(there)
        self.lines.append(f"damage step {step}: {damage(there[step], self.rng.choice(DAMAGES), self.rng)}")
        self.damaged.add(there[step].name)

    def finish(self) -> None:
        """A last life to the end, and the comparison with the undisturbed run."""
        expected, log = newest(self.run_dir), self.run_dir.with_suffix(".last")
        codes = nursery().life(self.world, settings(self.layout, self.run_dir), log, self.faults)
        assert codes == [0] * self.world, f"{self.lines}\n{log.read_text()[-3000:]}"
        self.check_life(log, expected, -1)
        assert exact(curve(self.run_dir)) == self.reference.curve, self.lines
        assert whole(folders(self.run_dir)[STEPS]) == self.reference.files[STEPS], self.lines
        left = [p.name for p in (self.run_dir / "checkpoints").glob(".saving-*")]
        assert not left or expected == STEPS, (self.lines, left)  # the first save of a life clears what others left behind


def run_chain(seed: int, layout: str, kills: int, places: dict[str, int] | None = None, faults: tuple[dict, ...] = ()) -> Chain:
    """`kills` lives that are killed, some with the newest checkpoint damaged before them, and one to the end.

    Args:
        places: weights of the places; None: WEIGHTS.

    Raises:
        AssertionError: with everything that was done, if the resumed run is not the undisturbed one, bit for bit.
    """
    run_dir = home() / f"chain-{seed}-{os.getpid()}"
    chain = Chain(layout, run_dir, random.Random(f"{seed} {layout}"), places=places or WEIGHTS, faults=faults)
    try:
        for number in range(kills):
            if chain.rng.random() < 0.25:
                chain.damage_newest()
            chain.kill_once(number)
        chain.finish()
    finally:
        for path in home().glob(f"{run_dir.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return chain
