"""Saving in the background (K3, K4, K5): what the files hold, who waits, what a failure does, and a kill at every moment."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import saver_support
import torch
from saver_support import ARRAYS, fake_engine, make_saver, values_in

from mads.checkpoint import saver as saver_module
from mads.checkpoint import writing
from mads.checkpoint.finding import find_latest
from mads.checkpoint.manifest import CheckpointError, Keep, name_of, publish, verify
from mads.checkpoint.tensors import KEYS, write_tensors
from mads.checkpoint.writing import Publication, Writer, part_name


def holding(monkeypatch):
    """Writers wait before each file until the event that is returned is set."""
    gate, real = threading.Event(), Writer._write

    def write(self, name, make, items):
        assert gate.wait(30)
        real(self, name, make, items)

    monkeypatch.setattr(Writer, "_write", write)
    return gate


def check_mutated_after_save(root):
    """Whatever changes right after `save` returns, the files hold what was there before."""
    with pytest.MonkeyPatch.context() as patch:
        gate = holding(patch)
        saver, engine = make_saver(root), fake_engine()
        state, ids = {"step": 1, "console": {"theta": [1]}}, np.arange(4)
        saver.save(1, engine, state, {"pending_ids": ids}, {})
        assert find_latest(root) is None  # nothing is written yet
        with torch.no_grad():
            for tensor in [*(p for _, p in engine.parameters), *engine.moments.values()]:
                tensor.fill_(-7.0)
        state["console"]["theta"][0] = 2
        ids.fill(-1)
        gate.set()
        saver.wait()
    found = find_latest(root)
    values = values_in(found)
    assert {item: set(v.flatten().tolist()) for item, v in values.items()} == {
        (key, name): {1.0 if key == "weight" else 10.0} for key in KEYS for name in ("a", "b")
    }
    assert json.loads((found / "state.json").read_text())["console"] == {"theta": [1]}
    assert np.load(found / "pending_ids.npy").tolist() == [0, 1, 2, 3]


def test_k4_what_changes_right_after_save_returns_is_not_in_the_files(tmp_path):
    check_mutated_after_save(tmp_path)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_checkpoint_is_whole_and_names_what_it_holds(tmp_path, asynchronous):
    saver = make_saver(tmp_path, asynchronous=asynchronous)
    files = {"ledger.bin": lambda path: path.write_bytes(b"counts")}
    saver.save(3, fake_engine(), {"step": 3}, ARRAYS, files)
    if not asynchronous:
        assert (tmp_path / "latest").read_text() == "step-00000003\n"
    saver.wait()
    assert find_latest(tmp_path) == tmp_path / name_of(3)
    names = set(verify(tmp_path / name_of(3))["files"])
    assert names == {p.name for p in (tmp_path / name_of(3)).iterdir()} - {"manifest.json"}  # no part files are left
    assert {"state.json", "rng.npy", "pending_ids.npy", "ledger.bin", "weight-00000-00001.safetensors"} <= names
    assert not any("tied" in item for item in values_in(tmp_path / name_of(3)))  # another stage saves it
    [report] = saver.reports()
    sizes = sum(p.stat().st_size for p in (tmp_path / name_of(3)).iterdir() if p.name != "manifest.json")
    assert (report.step, report.error, report.bytes) == (3, None, sizes) and report.write_seconds > 0
    assert saver.reports() == [] and sorted(p.name for p in tmp_path.iterdir()) == ["latest", name_of(3)]


def check_waits(root):
    """Two saves never run at once."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        gate = holding(patch)
        saver = make_saver(root, say=lambda text: (said.append(text), gate.set()))
        try:
            saver.save(1, fake_engine(), {"step": 1}, ARRAYS, {})
            assert saver.reports() == []
            saver.save(2, fake_engine(2, 2.0), {"step": 2}, ARRAYS, {})
            assert said == ["waiting for checkpoint 1, which is still being written"]
            assert (root / name_of(1) / "manifest.json").is_file()
            saver.wait()
            saver.wait()  # nothing more to wait for
        finally:
            gate.set()
    assert [r.step for r in saver.reports()] == [1, 2] and find_latest(root).name == name_of(2) and len(said) == 2


def test_a_save_waits_for_the_one_before_and_says_so(tmp_path):
    check_waits(tmp_path)


def test_a_synchronous_save_holds_few_files_in_memory(tmp_path, monkeypatch):
    waiting, most = [0], [0]
    real_add, real_write = Writer.add, Writer._write

    def add(self, name, write, items=None):
        waiting[0] += 1
        most[0] = max(most[0], waiting[0])
        real_add(self, name, write, items)

    def write(self, *task):
        real_write(self, *task)
        waiting[0] -= 1

    monkeypatch.setattr(Writer, "add", add)
    monkeypatch.setattr(Writer, "_write", write)
    make_saver(tmp_path, asynchronous=False, max_file_bytes=1).save(1, fake_engine(), {"step": 1}, ARRAYS, {})
    assert most[0] <= 4 and len(list((tmp_path / name_of(1)).iterdir())) == 10  # one written, one waiting, one being added


def full_disk(path, tensors):
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def check_failed_save(root, asynchronous=True):
    """Told at the next save, on leaving and at the end; nothing of it is left, and the checkpoint before is."""
    said = []
    saver = make_saver(root, asynchronous=asynchronous, say=said.append)
    saver.save(1, fake_engine(), {"step": 1}, ARRAYS, {})
    saver.wait()
    saver.reports()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saver_module, "write_tensors", full_disk)
        with pytest.raises(CheckpointError, match="^saving checkpoint 2 failed: rank 0: OSError: .*No space left on device"):
            saver.save(2, fake_engine(), {"step": 2}, ARRAYS, {})
            assert asynchronous  # a synchronous save raises itself
            saver.save(3, fake_engine(), {"step": 3}, ARRAYS, {})
        [report] = saver.reports()
        assert report.step == 2 and "No space left" in report.error
        assert sorted(p.name for p in root.iterdir()) == ["latest", name_of(1)] and find_latest(root).name == name_of(1)
        if asynchronous:
            saver.save(4, fake_engine(), {"step": 4}, ARRAYS, {})
            saver.leave()  # the process ends for another reason: the failure is not lost
            assert "saving checkpoint 4 failed: OSError: [Errno 28] No space left on device" in said[-1]
            with pytest.raises(CheckpointError, match="checkpoint 4 failed"):
                saver.wait()
    saver.save(5, fake_engine(), {"step": 5}, ARRAYS, {})
    saver.leave()
    assert find_latest(root).name == name_of(5)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_k5_a_failed_save_is_told_later_and_leaves_the_one_before(tmp_path, asynchronous):
    check_failed_save(tmp_path, asynchronous)


def test_what_cannot_be_written_down_fails_before_the_background(tmp_path):
    saver = make_saver(tmp_path)
    with pytest.raises(CheckpointError, match="checkpoint 1 failed: rank 0: ValueError: Out of range float"):
        saver.save(1, fake_engine(), {"loss": float("nan")}, ARRAYS, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="checkpoint 1 failed: rank 0: NotADirectoryError|FileExistsError"):
        (tmp_path / "file").write_text("")
        make_saver(tmp_path / "file" / "root").save(1, fake_engine(), {}, ARRAYS, {})


# ---------------------------------------------------------------- rank 0 and the parts of two ranks


def part(folder, rank, items, write=True):
    """One rank's file and part, as its Writer leaves them."""
    writer = Writer(folder, rank)
    for key, name in items:
        writer.add(f"{key}-{rank:05d}-{name}", lambda path: write_tensors(path, {"x": torch.zeros(2)}), [(key, name)])
    writer.complete()
    writer.start()
    writer.join()
    assert writer.error is None


ITEMS = [[("weight", "a")], [("weight", "b"), ("exp_avg", "b")]]


def publication(root, folder, limit_s=5.0):
    return Publication(root, folder, 7, 2, {i for items in ITEMS for i in items}, Keep(2), limit_s)


def truncate(folder):
    with open(folder / "weight-00001-b", "r+b") as f:
        f.truncate(10)


def damage_part(folder, **changes):
    path = folder / part_name(1)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def fail(folder):
    """As a Writer on a disk that is full even for its last word."""
    (folder / part_name(1)).unlink()
    (folder / "failed-00001").touch()


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: (f / part_name(1)).unlink(), r"ranks \[1\] have not written their files 0.2 s after the last other one"),
        (fail, "rank 1: it could not even write what went wrong; is the disk full"),
        (lambda f: damage_part(f, error="OSError: no"), "^rank 1: OSError: no$"),
        (truncate, "rank 1: weight-00001-b has 10 bytes"),
        (lambda f: (f / "weight-00001-b").unlink(), "weight-00001-b"),
        (lambda f: damage_part(f, tensors=[["weight", "b"]]), r"lack \[\('exp_avg', 'b'\)\]"),
        (
            lambda f: damage_part(f, tensors=[["weight", "a"], ["weight", "b"], ["exp_avg", "b"]]),
            r"hold \[\('weight', 'a'\)\]",
        ),
        (
            lambda f: damage_part(f, tensors=[["weight", "b"], ["exp_avg", "b"], ["weight", "c"]]),
            r"hold \[\('weight', 'c'\)\]",
        ),
    ],
)
def test_k3_k5_parts_that_are_missing_failed_or_do_not_fit_are_not_published(tmp_path, damage, words):
    check_parts(tmp_path, damage, words)


def lose_a_tensor(folder):
    damage_part(folder, tensors=[["weight", "b"]])


def check_parts(root, damage=lose_a_tensor, words="lack"):
    """Parts of two ranks, of which one is damaged: an error, and the checkpoint before is left."""
    earlier = root / ".saving-first"
    earlier.mkdir(parents=True)
    publish(root, earlier, 1)
    folder = root / ".saving-second"
    folder.mkdir()
    for rank in (0, 1):
        part(folder, rank, ITEMS[rank])
    damage(folder)
    with pytest.raises((CheckpointError, FileNotFoundError), match=words):
        publication(root, folder, limit_s=0.2)()
    assert sorted(p.name for p in root.iterdir()) == ["latest", name_of(1)]


def test_k3_parts_of_two_ranks_are_published_together_when_the_later_one_is_there(tmp_path):
    folder = tmp_path / ".saving-second"
    folder.mkdir()
    part(folder, 0, ITEMS[0])
    late = threading.Timer(0.3, part, (folder, 1, ITEMS[1]))
    late.start()
    published = publication(tmp_path, folder)
    published()
    late.join()
    recorded = verify(tmp_path / name_of(7))["files"]
    assert set(recorded) == {"weight-00000-a", "weight-00001-b", "exp_avg-00001-b"}
    assert published.bytes == sum(entry["bytes"] for entry in recorded.values())


def test_an_error_is_told_even_when_the_part_cannot_be_written(tmp_path, monkeypatch):
    writer = Writer(tmp_path, 3)
    monkeypatch.setattr(writing, "flush", lambda path: full_disk(path, {}))
    writer.add("weight", lambda path: full_disk(path, {}))
    writer.add("never", lambda path: path.touch())
    writer.complete()
    writer.start()
    writer.join()
    assert "No space left" in writer.error
    assert {p.name for p in tmp_path.iterdir()} - {"part-00003.json.tmp"} == {"failed-00003"}  # its own files made room


# ---------------------------------------------------------------- killed


def check_killed_at_every_moment(folder):
    """SIGKILL at every call that reaches the disk: a whole checkpoint is found, the new one from its rename on."""
    script = Path(__file__).parents[2] / "saver_support.py"
    told = [script, folder, saver_support.SABOTAGE]
    done = subprocess.run([sys.executable, *told], capture_output=True, text=True, timeout=120, env=os.environ)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(lines) > 20 and [line["killed"] for line in lines] == [True] * (len(lines) - 1) + [False]
    for line in lines:
        step = int(line["found"][-1])
        assert line["complete"] and line["values"] == [float(step), 10.0 * step], line
        assert step == 2 or line["latest"] == name_of(1), line
    found = [line["found"] for line in lines]
    assert found == sorted(found) and found[0] == name_of(1) and lines[-1]["latest"] == name_of(2)


def test_k5_killed_at_any_moment_a_whole_checkpoint_is_found(tmp_path):
    check_killed_at_every_moment(tmp_path)


def check_alone(name):
    """A check of this file in a folder of its own, for mutants."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a mutant may leave a thread that still writes
        globals()[name](Path(folder))
