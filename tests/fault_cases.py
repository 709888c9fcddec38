"""Faults other than kills. Each function makes one happen to a real run, checks what follows, and returns what was printed."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import run_support
from fault_support import DAMAGES, LAYOUTS, STEPS, damage, exact, folders, home, newest, nursery, reference, settings, whole
from run_support import curve

LAYOUT = "dp2 zero1"
HALF = "train.stop_at=4"
FULL_BYTES, ROOM_BYTES = "size=800k", "size=16m"  # of a checkpoint folder: one checkpoint and a half, many


def messages(said: str) -> list[str]:
    """What rank 0 printed as a message."""
    return [line for line in said.splitlines() if re.match(r"mads train: (?!rank \d+ left)", line)]


class Run:
    """One run folder and its lives."""

    def __init__(self, name: str):
        self.dir, self.lives = home() / name.replace(" ", "-").replace(",", ""), 0
        self.rows: list[dict] = []

    def life(self, *overrides: str, faults=(), limit_s: float = 150.0) -> tuple[list[int], str]:
        """(exit codes, what was printed)."""
        self.lives += 1
        log = self.dir.with_name(f"{self.dir.name}.{self.lives}")
        codes = nursery().life(LAYOUTS[LAYOUT][0], settings(LAYOUT, self.dir, *overrides), log, faults, 1.0, limit_s=limit_s)
        return codes, log.read_text()

    def half(self) -> None:
        """Train up to step 4, with checkpoints at 2 and 4."""
        codes, said = self.life(HALF)
        assert codes == [0, 0], said

    def fails(self, code: int, *words: str, overrides=(), faults=()) -> str:
        """A life that ends with an exit code and one message, which holds the words; the message. Other ranks' watchdogs may say
        that rank 0 left."""
        codes, said = self.life(*overrides, faults=faults)
        told = messages(said)
        assert code in codes and len(told) == 1, (codes, said[-3000:])
        for word in words:
            assert word in told[0], (word, told)
        self.note(codes, told[0])
        return told[0]

    def note(self, codes: list[int], printed: str) -> None:
        printed = printed.replace(str(self.dir), "RUN").replace(str(home()), "FOLDER")
        self.rows.append({"exit codes": " ".join(map(str, codes)), "printed": printed})

    def equals_undisturbed(self, *overrides: str, faults=(), at: Path | None = None) -> str:
        """A life to the end that gives the curve and the last checkpoint of the undisturbed run; what was printed."""
        codes, said = self.life(*overrides, faults=faults)
        at = at or self.dir
        assert codes == [0, 0], said[-3000:]
        assert exact(curve(at)) == reference(LAYOUT).curve, said[-3000:]
        assert whole(folders(at)[STEPS]) == reference(LAYOUT).files[STEPS]
        return said

    def result(self, then: str) -> dict:
        return {"rows": [row | {"then": then} for row in self.rows]}


# ---------------------------------------------------------------- checkpoints


def damaged_checkpoint(run: Run, kind: str) -> dict:
    """The newest of two is damaged: the run goes on from the other one."""
    run.half()
    done = damage(folders(run.dir)[4], kind, random.Random(kind))
    said = run.equals_undisturbed()
    told = [line for line in said.splitlines() if "passed over" in line]
    assert len(told) == 1 and "going on from step-00000002" in told[0] and "resuming step-00000002" in said, said
    assert (run.dir / "checkpoints" / "step-00000004.damaged").is_dir()
    run.note([0, 0], told[0])
    return run.result(f"{done}: goes on from step 2, the curve is equal")


def all_checkpoints_damaged(run: Run) -> dict:
    run.half()
    for step in (2, 4):
        damage(folders(run.dir)[step], "truncate", random.Random(step))
    run.fails(2, "none of 2 checkpoints", "step-00000004: ", "step-00000002: ")
    assert sorted(folders(run.dir)) == [2, 4]
    return run.result("nothing is renamed or trained")


def damaged_branch_point(run: Run) -> dict:
    """An older checkpoint is there, and is not taken."""
    run.half()
    point = folders(run.dir)[4]
    damage(point, "flip", random.Random(1))
    trunk, run.dir = run.dir, run.dir.with_name(run.dir.name + "-branch")
    run.fails(2, "train.branch_from", "is damaged", overrides=[f"train.branch_from={point}"])
    assert sorted(folders(trunk)) == [2, 4] and not folders(run.dir)
    return run.result("no other checkpoint in its place")


def _own_disk(run: Run, where: Path, size: str) -> bool:
    """A small file system at `where`; False if none can be mounted here."""
    where.mkdir(parents=True, exist_ok=True)
    if nursery().mounts:
        nursery().mount("-t", "tmpfs", "-o", size, "tmpfs", str(where))
    return nursery().mounts


def disk_full_at_a_save(run: Run) -> dict:
    checkpoints = run.dir / "checkpoints"
    mounted = _own_disk(run, checkpoints, FULL_BYTES)
    limit = [{"kind": "file_limit", "rank": "all", "place": "step", "step": 3, "bytes": 60_000}]
    error = "No space left on device" if mounted else "File too large"
    run.fails(2, "saving checkpoint 4 failed", error, " bytes: ", str(checkpoints), faults=() if mounted else limit)
    seen = nursery().seen(checkpoints)
    assert newest(seen.parent) == 2 and whole(seen / "step-00000002") == reference(LAYOUT).files[2]
    assert not list(seen.glob(".saving*"))
    if mounted:
        nursery().mount("-o", f"remount,{ROOM_BYTES}", str(checkpoints))
    codes, said = run.life()
    assert codes == [0, 0] and "resuming step-00000002" in said, said[-3000:]
    assert exact(curve(run.dir)) == reference(LAYOUT).curve
    assert whole(seen / f"step-{STEPS:08d}") == reference(LAYOUT).files[STEPS]
    how = f"a tmpfs of {FULL_BYTES[5:]}B" if mounted else "a limit on the length of files, for nothing can be mounted"
    return run.result(f"{how}: checkpoint 2 is intact; with room the same command goes on, the curve is equal")


def no_checkpoint_fits(run: Run) -> dict:
    """A limit on the length of files, which no checkpoint keeps to."""
    limit = [{"kind": "file_limit", "rank": "all", "place": "step", "step": 0, "bytes": 60_000}]
    run.fails(2, "saving checkpoint 2 failed", "File too large", " bytes: ", faults=limit)
    assert not folders(run.dir)
    run.equals_undisturbed()
    return run.result("without the limit the same command begins anew, the curve is equal")


def disk_full_at_the_log(run: Run) -> dict:
    """The run folder's logs cannot grow; the checkpoint before is intact."""
    run.half()
    # More than what is printed takes, for the limit holds for that file too, and less than the lines of seven steps.
    limit = [{"kind": "file_limit", "rank": 0, "place": "log", "step": 7, "bytes": 8000}]
    told = run.fails(1, ".jsonl", "bytes could not be written", "File too large", faults=limit)
    assert str(run.dir) in told
    run.equals_undisturbed()
    return run.result("a limit on the length of files; without it the same command goes on, the curve is equal")


def disk_full_from_the_start(run: Run) -> dict:
    """A run folder on a disk of few pages: some file of it is the first that does not fit."""
    if not _own_disk(run, run.dir, "size=24k"):
        return {"rows": [{"printed": "not tried: nothing can be mounted here"}]}
    run.fails(1, str(run.dir), "bytes could not be written", "No space left on device", overrides=["checkpoint.interval=0"])
    nursery().mount("-o", f"remount,{ROOM_BYTES}", str(run.dir))
    run.equals_undisturbed("checkpoint.interval=0", at=nursery().seen(run.dir))
    return run.result("a tmpfs of 24 kB; with room the same command begins anew, the curve is equal")


def read_only_checkpoints(run: Run) -> dict:
    checkpoints = run.dir / "checkpoints"
    if not _own_disk(run, checkpoints, ROOM_BYTES):
        return {"rows": [{"printed": "not tried: nothing can be mounted here"}]}
    run.half()
    seen = nursery().seen(checkpoints)
    nursery().mount("-o", "remount,ro", str(checkpoints))
    run.fails(2, "saving checkpoint 6 failed", "Read-only file system", str(checkpoints))
    nursery().mount("-o", "remount,rw", str(checkpoints))
    damage(seen / "step-00000004", "truncate", random.Random(3))
    nursery().mount("-o", "remount,ro", str(checkpoints))
    run.fails(2, "step-00000004", "cannot be set aside", "Read-only file system")
    nursery().mount("-o", "remount,rw", str(checkpoints))
    codes, said = run.life()
    assert codes == [0, 0] and "resuming step-00000002" in said and exact(curve(run.dir)) == reference(LAYOUT).curve
    return run.result("writable again, the same command goes on, the curve is equal")


# ---------------------------------------------------------------- data


def changed_data(run: Run, kind: str) -> dict:
    """The data differs between two lives of a run."""
    data, own = home() / "prepared", run.dir.with_name(run.dir.name + "-data")
    shutil.copytree(data, own)
    run.half()
    shard = next((own / "train").glob("*.bin"))
    raw = bytearray(shard.read_bytes())
    overrides = [f"data.dir={own}"]
    if kind.startswith("a flipped byte"):
        raw[len(raw) // 2] ^= 1
        shard.write_bytes(raw)
    elif kind == "a truncated shard":
        shard.write_bytes(raw[:-2])
    elif kind == "an edited manifest":
        manifest = json.loads((own / "manifest.json").read_text())
        entry = next(entry for name, entry in manifest["files"].items() if name.endswith(".bin"))
        entry["sha256"] = "0" * 64
        (own / "manifest.json").write_text(json.dumps(manifest))
    else:
        shutil.rmtree(own)
        original = run_support.write_corpus
        run_support.write_corpus = lambda folder: original(folder, seed=1)
        try:
            run_support.prepare_small(own.with_name(own.name + "-made"))
        finally:
            run_support.write_corpus = original
        overrides = [f"data.dir={own}-made/prepared"]
    if kind == "a flipped byte in a shard":
        codes, _ = run.life(*overrides)
        assert codes == [0, 0]
        run.note(codes, "nothing: sizes are compared at a start, hashes only with train.verify_data=true")
        return run.result("trains on the changed token")
    if "verified" in kind:
        overrides.append("train.verify_data=true")
    run.fails(2, CHANGES[kind], overrides=overrides)
    run.equals_undisturbed("train.verify_data=true")
    return run.result("with the former data the same command goes on, the curve is equal")


# ---------------------------------------------------------------- ranks


def nan_in_a_weight(run: Run) -> dict:
    """A weight of rank 1 becomes NaN before step 6."""
    codes, said = run.life(faults=[{"kind": "poison", "rank": 1, "step": 5}])
    told = messages(said)
    assert codes[0] == 1 and codes[1] != 0 and len(told) == 1 and "the step was not taken" in told[0], (codes, said[-2000:])
    run.note(codes, told[0])
    assert newest(run.dir) == 4 and whole(folders(run.dir)[4]) == reference(LAYOUT).files[4]
    run.equals_undisturbed()
    return run.result("checkpoint 4 is intact; the same command goes on, the curve is equal")


def slow_rank(run: Run) -> dict:
    """A rank is late in a step, in a save, in its thread that writes, in a selection."""
    late = [("step", 2, 1), ("save", 4, 0), ("write", 6, 1), ("selection", 6, 1), ("evaluation", 8, 0)]
    faults = [{"kind": "delay", "place": p, "step": s, "rank": r, "seconds": 1.5} for p, s, r in late]
    said = run.equals_undisturbed(faults=faults)
    assert "mads train: " not in said
    run.note([0, 0], "nothing")
    return run.result("late by 1.5 s in " + ", ".join(f"{p} {s} (rank {r})" for p, s, r in late) + ": the curve is equal")


# Change -> a word of what is told.
CHANGES = {
    "a flipped byte in a shard": None,
    "a flipped byte in a shard, verified": "is damaged",
    "a truncated shard": "should have",
    "an edited manifest": "was edited",
    "other data": "fingerprint",
}
CASES = {
    **{f"newest checkpoint, {kind}": lambda run, kind=kind: damaged_checkpoint(run, kind) for kind in DAMAGES},
    "all checkpoints damaged": all_checkpoints_damaged,
    "branch point damaged": damaged_branch_point,
    "disk full at a save": disk_full_at_a_save,
    "no checkpoint fits": no_checkpoint_fits,
    "disk full at the log": disk_full_at_the_log,
    "disk full from the start": disk_full_from_the_start,
    "read-only checkpoint folder": read_only_checkpoints,
    **{f"data, {kind}": lambda run, kind=kind: changed_data(run, kind) for kind in CHANGES},
    "NaN in a weight": nan_in_a_weight,
    "slow rank": slow_rank,
}


def run_fault(name: str) -> dict:
    """One fault; its rows for the page."""
    return CASES[name](Run(name))
