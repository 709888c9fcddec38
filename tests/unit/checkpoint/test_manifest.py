"""A checkpoint folder is complete or not there (K3, K5): publishing, finding, refusing, pruning."""

import hashlib
import json
import os
import shutil

import pytest

from mads.checkpoint import manifest
from mads.checkpoint.finding import find_latest
from mads.checkpoint.manifest import CheckpointError, Keep, name_of, prune, publish, verify


def temporary(root, step, text="x"):
    folder = root / f".saving-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step}))
    (folder / "weight-00000.safetensors").write_bytes(f"{text}{step}".encode() * 100)
    return folder


def published(root, *steps):
    return [publish(root, temporary(root, step), step) for step in steps]


class Killed(BaseException):
    """The process ends here."""


def killed_at(monkeypatch, root, step, call):
    """Publish a step and die at the given call (0-based) of os.replace."""
    real, calls = os.replace, []

    def replace(source, target):
        if len(calls) == call:
            raise Killed
        calls.append(target)
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(manifest.os, "replace", replace)
        with pytest.raises(Killed):
            publish(root, temporary(root, step, "again"), step)


def test_published_checkpoints_verify_and_the_pointer_names_the_newest(tmp_path):
    folders = published(tmp_path, 5, 10)
    assert [f.name for f in folders] == [name_of(5), name_of(10)] == ["step-00000005", "step-00000010"]
    assert (tmp_path / "latest").read_text() == "step-00000010\n" and find_latest(tmp_path) == folders[1]
    recorded = verify(folders[0])
    assert recorded["step"] == 5 and sorted(recorded["files"]) == ["state.json", "weight-00000.safetensors"]
    assert recorded["files"]["state.json"]["bytes"] == (folders[0] / "state.json").stat().st_size
    assert not list(tmp_path.glob(".saving-*")) and not (tmp_path / "latest.tmp").exists()


def test_a_run_without_a_checkpoint_has_none(tmp_path):
    assert find_latest(tmp_path) is None and find_latest(tmp_path / "nowhere") is None
    temporary(tmp_path, 5)  # a save that did not end
    assert find_latest(tmp_path) is None


def test_k5_killed_before_the_folder_is_renamed_the_previous_one_loads(tmp_path, monkeypatch):
    (old,) = published(tmp_path, 5)
    killed_at(monkeypatch, tmp_path, 10, call=0)
    assert find_latest(tmp_path) == old
    prune(tmp_path, Keep(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", old.name]


@pytest.mark.parametrize("earlier", [[], [5]])
def test_k5_killed_between_the_renames_the_new_folder_is_taken_although_the_pointer_is_behind(tmp_path, monkeypatch, earlier):
    published(tmp_path, *earlier)
    killed_at(monkeypatch, tmp_path, 10, call=1)
    assert find_latest(tmp_path) == tmp_path / name_of(10)


@pytest.mark.parametrize("call, survivor", [(0, 10), (1, 5), (2, 10)])
def test_k5_killed_while_a_step_is_saved_again_a_whole_checkpoint_is_left(tmp_path, monkeypatch, call, survivor):
    published(tmp_path, 5, 10)
    killed_at(monkeypatch, tmp_path, 10, call)
    found = find_latest(tmp_path)
    assert found == tmp_path / name_of(survivor)
    text = (found / "weight-00000.safetensors").read_bytes()
    assert text.startswith(b"again") == (call == 2)
    prune(tmp_path, Keep(5))
    assert not list(tmp_path.glob(".saving-*")) and find_latest(tmp_path) == found


def test_saving_a_step_again_replaces_it_whole(tmp_path):
    published(tmp_path, 5)
    publish(tmp_path, temporary(tmp_path, 5, "again"), 5)
    assert (find_latest(tmp_path) / "weight-00000.safetensors").read_bytes().startswith(b"again5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", name_of(5)]


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[7] ^= 1
    path.write_bytes(raw)


def edit(folder, **changes):
    """Change the manifest, and its own hash with it."""
    path = folder / "manifest.json"
    content = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"} | changes
    path.write_text(json.dumps(content | {"sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: flip(f / "weight-00000.safetensors"), "weight-00000.safetensors is damaged: its SHA-256"),
        (
            lambda f: (f / "weight-00000.safetensors").write_bytes(b""),
            "is damaged: it has 0 bytes, the manifest says",
        ),
        (lambda f: (f / "state.json").unlink(), "state.json is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff{}"), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text('{"format_version": 1}'), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text('{"format_version": 1, "files": ["a"]}'), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text('{"format_version": 1, "files": {"a": 3}}'), "manifest.json is damaged"),
        (lambda f: edit(f, files={"../step-00000005/state.json": {"bytes": 1, "sha256": ""}}), "outside of its folder: '../step"),
        (lambda f: edit(f, files={str(f / "state.json"): {"bytes": 1, "sha256": ""}}), "outside of its folder"),
    ],
)
def test_k3_damage_is_named_and_the_one_before_is_offered_not_taken(tmp_path, damage, words):
    _, newest = published(tmp_path, 5, 10)
    damage(newest)
    with pytest.raises(CheckpointError, match=words):
        verify(newest)
    with pytest.raises(CheckpointError, match=f"{words}.*the newest whole checkpoint before it is .*{name_of(5)}"):
        find_latest(tmp_path)
    shutil.rmtree(newest)
    assert find_latest(tmp_path) == tmp_path / name_of(5)


def test_k3_any_flipped_bit_of_a_manifest_is_found_out(tmp_path):
    (folder,) = published(tmp_path, 5)
    raw = (folder / "manifest.json").read_bytes()
    content = json.loads(raw)
    unseen = 0
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1 << place % 8
        (folder / "manifest.json").write_bytes(changed)
        try:
            assert verify(folder) == content, place  # white space
            unseen += 1
        except CheckpointError:
            pass
    assert unseen < len(raw) / 10


def test_a_checkpoint_of_another_format_is_no_damage(tmp_path):
    _, newest = published(tmp_path, 5, 10)
    edit(newest, format_version=9)
    for read in (verify, lambda folder: find_latest(folder.parent)):
        with pytest.raises(manifest.FormatError, match="has format 9; this mads reads 1"):
            read(newest)


def test_a_manifest_without_a_hash_of_its_own_is_read(tmp_path):
    (folder,) = published(tmp_path, 5)
    content = json.loads((folder / "manifest.json").read_text())
    del content["sha256"]
    (folder / "manifest.json").write_text(json.dumps(content))
    assert verify(folder) == content


def test_k3_a_folder_without_its_manifest_is_no_checkpoint(tmp_path):
    old, newest = published(tmp_path, 5, 10)
    (newest / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=f"manifest.json is missing.*before it is {old}"):
        find_latest(tmp_path)


def test_when_every_checkpoint_is_damaged_a_new_start_is_the_way_out(tmp_path):
    folders = published(tmp_path, 5, 10)
    for folder in folders:
        flip(folder / "weight-00000.safetensors")
    with pytest.raises(
        CheckpointError,
        match="none of 2 checkpoints .*10: .*damaged.*05: .*damaged.*remove all to start again",
    ):
        find_latest(tmp_path)
    for folder in folders:
        shutil.rmtree(folder)
    assert find_latest(tmp_path) is None  # the pointer alone is nothing


def test_a_newer_complete_folder_wins_over_the_pointer(tmp_path):
    published(tmp_path, 5, 10)
    (tmp_path / "latest").write_text(name_of(5) + "\n")
    assert find_latest(tmp_path).name == name_of(10)


def test_a_pointer_cannot_lead_out_of_the_folder(tmp_path):
    root = tmp_path / "run"
    published(root, 5)
    published(tmp_path / "other", 7)
    (root / "latest").write_text("../other/step-00000007\n")
    assert find_latest(root) == root / name_of(5)


@pytest.mark.parametrize("keep, left", [(1, [30]), (2, [20, 30]), (9, [5, 10, 20, 30]), (0, [30])])
def test_prune_keeps_the_newest_and_clears_what_crashed_saves_left(tmp_path, keep, left):
    published(tmp_path, 5, 10, 20, 30)
    temporary(tmp_path, 40)
    prune(tmp_path, Keep(keep))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", *map(name_of, left)]
    assert find_latest(tmp_path).name == name_of(30)


def test_a_kill_while_one_is_removed_leaves_no_half_of_it_under_its_name(tmp_path, monkeypatch):
    published(tmp_path, 5, 10)
    with monkeypatch.context() as patched:
        patched.setattr(manifest.shutil, "rmtree", lambda path, ignore_errors=False: None if ignore_errors else killed())
        with pytest.raises(Killed):
            prune(tmp_path, Keep(1))
    assert sorted(p.name for p in tmp_path.glob("step-*")) == [name_of(10)]
    prune(tmp_path, Keep(1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", name_of(10)]


def killed():
    raise Killed
