"""A resume takes the newest whole checkpoint, says what it passed over, and sets that aside (K3)."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from mads.checkpoint import finding
from mads.checkpoint.finding import search
from mads.checkpoint.manifest import CheckpointError, Keep, name_of, prune, publish

ORDERS = [[], [30], [30, 20], [30, 10], [20], [20, 10]]


def published(root, *steps):
    for step in steps:
        folder = root / f".saving-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(f"{step:08d}")
        (folder / "weight").write_bytes(bytes(100))
        publish(root, folder, step)


def flip(folder):
    raw = bytearray((folder / "weight").read_bytes())
    raw[50] ^= 16
    (folder / "weight").write_bytes(raw)


def truncate(folder):
    with open(folder / "weight", "r+b") as file:
        file.truncate(99)


DAMAGES = {
    "flip": flip,
    "truncate": truncate,
    "lose a part": lambda folder: (folder / "weight").unlink(),
    "lose the manifest": lambda folder: (folder / "manifest.json").unlink(),
    "cut the manifest": lambda folder: (folder / "manifest.json").write_text("{"),
    "empty": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


def check_fallback(root, damage, damaged):
    """Steps 10, 20, 30, of which some are damaged."""
    published(root, 10, 20, 30)
    for step in damaged:
        DAMAGES[damage](root / name_of(step))
    whole = max(s for s in (10, 20, 30) if s not in damaged)
    passed = [s for s in (30, 20, 10) if s in damaged and s > whole]
    found = search(root)
    assert found.path == root / name_of(whole) and [path.name for path, _ in found.damaged] == list(map(name_of, passed))
    before = sorted(p.name for p in root.iterdir())
    told = finding.set_aside(root, found)
    assert (told is None) == (not passed)
    if passed:
        assert told.startswith(f"{len(passed)} damaged checkpoint") and f"going on from {name_of(whole)}" in told
        assert all(name_of(s) + ".damaged" in told for s in passed)
        assert (root / "latest").read_text().strip() == name_of(whole)
    else:
        assert sorted(p.name for p in root.iterdir()) == before
    assert search(root) == finding.Search(root / name_of(whole))
    for step in passed:  # nothing is deleted, and nothing takes it for a checkpoint again
        assert (root / f"{name_of(step)}.damaged").is_dir()
    prune(root, Keep(1))
    assert search(root).path == root / name_of(whole)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("damaged", ORDERS, ids=str)
def test_k3_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_set_aside(tmp_path, damage, damaged):
    check_fallback(tmp_path, damage, damaged)


def check_alone():
    """For the mutants."""
    with tempfile.TemporaryDirectory() as folder:
        for number, (damage, damaged) in enumerate((d, o) for d in DAMAGES for o in ORDERS):
            check_fallback(Path(folder) / str(number), damage, damaged)


def test_damaged_again_it_gets_another_name(tmp_path):
    for count in (1, 2, 3):
        published(tmp_path, 10, 20)
        flip(tmp_path / name_of(20))
        finding.set_aside(tmp_path, search(tmp_path))
        assert len(list(tmp_path.glob("*.damaged*"))) == count


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_none_is_whole_it_is_an_error_and_nothing_is_moved(tmp_path, damage):
    published(tmp_path, 10, 20)
    for step in (10, 20):
        DAMAGES[damage](tmp_path / name_of(step))
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="none of 2 checkpoints.*step-00000020: .*step-00000010: .*to start again"):
        search(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_no_checkpoint_at_all_is_no_error(tmp_path):
    assert search(tmp_path) == search(tmp_path / "nowhere") == finding.Search()


def test_many_damaged_ones_are_counted_and_some_named(tmp_path):
    published(tmp_path, *range(10))
    for step in range(1, 10):
        flip(tmp_path / name_of(step))
    told = finding.set_aside(tmp_path, search(tmp_path))
    assert told.startswith("9 damaged checkpoints passed over") and "and 4 more" in told


@pytest.mark.parametrize("call", [0, 1, 2])
def test_killed_while_they_are_set_aside_the_next_start_finds_the_same(tmp_path, monkeypatch, call):
    published(tmp_path, 10, 20, 30)
    for step in (20, 30):
        flip(tmp_path / name_of(step))
    calls = []

    def renamed(original):
        def call_(*arguments):
            calls.append(arguments)
            if len(calls) > call:
                raise KeyboardInterrupt
            return original(*arguments)

        return call_

    with monkeypatch.context() as patched:
        for name in ("rename", "replace"):
            patched.setattr(os, name, renamed(getattr(os, name)))
        with pytest.raises(KeyboardInterrupt):
            finding.set_aside(tmp_path, search(tmp_path))
    found = search(tmp_path)
    assert found.path == tmp_path / name_of(10)
    finding.set_aside(tmp_path, found)
    assert sorted(p.name for p in tmp_path.glob("*.damaged")) == ["step-00000020.damaged", "step-00000030.damaged"]


def test_one_that_cannot_be_renamed_is_an_error(tmp_path, monkeypatch):
    published(tmp_path, 10, 20)
    flip(tmp_path / name_of(20))

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(CheckpointError, match="20: .*weight is damaged.*cannot be set aside.*Permission denied.*writable"):
        finding.set_aside(tmp_path, search(tmp_path))
