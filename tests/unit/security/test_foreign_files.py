"""Files from others, attacked reader by reader: names that lead out of their folder, links, classes that are none of ours.

A decoy stands outside of every folder. No reader may open it, however its name is spelt.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_pool import OneRank
from support import make_pool

from mads.checkpoint import canonical
from mads.checkpoint.finding import find_latest
from mads.checkpoint.manifest import CheckpointError, publish, verify
from mads.config.compose import ConfigError, compose
from mads.config.factory import build
from mads.data.attributes import read_column, write_column
from mads.data.pool import Pool
from mads.data.references import direction_texts
from mads.data.schema import AttributeSchema, DataError, Manifest, sha256_of
from mads.label.embedding import _pools_by_mean
from mads.label.relabel import remove_attributes
from mads.logging.decisions import decision_path
from mads.logging.metrics import MetricsWriter, write_atomically
from mads.paths import UnsafeNameError, inside
from mads.train.growth import PoolHistory
from mads.train.loop import Trainer

DECOY = "decoy.npy"
OUT = [
    "../" + DECOY,
    "a/../../" + DECOY,
    "./../" + DECOY,
    "..",
    ".",
    "",
    "a//b",
    "a/",
    "C:/decoy",
    "..\\" + DECOY,
    "a\0b",
    "\n",
    3,
]


@pytest.fixture
def decoy(tmp_path):
    """A folder to be attacked, beside a file that is not to be read."""
    np.save(tmp_path / DECOY, np.arange(5))
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


# ---------------------------------------------------------------- names


def check_names(folder):
    np.save(folder.parent / DECOY, np.arange(5))
    for name in [*OUT, str(folder.parent / DECOY)]:
        with pytest.raises(UnsafeNameError, match="is no name of a file inside"):
            inside(folder, name)


def check_links(folder):
    """A link to a file, to a folder, to nowhere, and a link in the middle of a path; pipes and folders are no files."""
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "file").write_text("x")
    (folder / "file").symlink_to(folder.parent / "elsewhere" / "file")
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    (folder / "broken").symlink_to(folder.parent / "nothing")
    (folder / "own").symlink_to("file")
    for name in ("file", "sub", "sub/file", "broken", "own"):
        with pytest.raises(UnsafeNameError, match="is a symbolic link"):
            inside(folder, name)
    os.mkfifo(folder / "pipe")
    (folder / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(UnsafeNameError, match="is no plain file"):
            inside(folder, name)


def in_a_folder(check):
    """Run a check on a folder of its own (for tests/mutants)."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "folder"
        folder.mkdir()
        globals()[check](folder)


def test_a_name_cannot_lead_out_of_its_folder(decoy):
    check_names(decoy)


def test_a_link_cannot_either(decoy):
    check_links(decoy)


def test_plain_names_pass_and_the_folder_may_be_a_link(decoy, tmp_path):
    (decoy / "train").mkdir()
    (decoy / "train" / "shard-00000.bin").write_bytes(b"x")
    (tmp_path / "link").symlink_to(decoy)
    for folder in (decoy, tmp_path / "link"):
        assert inside(folder, "train/shard-00000.bin").read_bytes() == b"x"
    assert inside(decoy, "train/attributes/quality@2/shard-00001.arrow").name == "shard-00001.arrow"  # not there yet


# ---------------------------------------------------------------- checkpoints


def checkpoint(root, step=5):
    folder = root / f".saving-{step}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    np.save(folder / "rng.npy", np.arange(3))
    return publish(root, folder, step)


def rewritten(path, change):
    """Change the files that a checkpoint's manifest names, with a hash of its own that fits."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]
    change(manifest["files"])
    whole = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest | {"sha256": whole}))


def listed(path, name, file):
    """Make a checkpoint's manifest vouch for a file under a name, with its true size and hash."""
    rewritten(path, lambda files: files.update({name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}}))


def check_checkpoint(folder):
    decoy = folder.parent / DECOY
    np.save(decoy, np.arange(5))
    for name in [f"../../{DECOY}", str(decoy), f"sub/../../../{DECOY}"]:
        path = checkpoint(folder)
        listed(path, name, decoy)
        for read in (verify, canonical.read_state, canonical.read_weights):
            with pytest.raises(CheckpointError, match="outside of its folder"):
                read(path)
        shutil.rmtree(path)
    path = checkpoint(folder)
    (path / "rng.npy").unlink()
    (path / "rng.npy").symlink_to(decoy)
    listed(path, "rng.npy", decoy)  # size and hash are right
    for read in (verify, canonical.read_state):
        with pytest.raises(CheckpointError, match="rng.npy is a symbolic link.*is not read"):
            read(path)


def test_a_checkpoint_reads_nothing_outside_of_its_folder(decoy):
    check_checkpoint(decoy)


def check_unnamed(folder):
    for name in ("state.json", "ledger.bin"):
        path = checkpoint(folder)
        (path / name).write_text("{}")
        rewritten(path, lambda files, name=name: files.pop(name, None))
        verify(path)
        with pytest.raises(CheckpointError, match=f"does not name {name}, so nothing vouches for it"):
            canonical.vouched(path, name)
        if name == "state.json":
            with pytest.raises(CheckpointError, match="does not name state.json"):
                canonical.read_state(path)
        shutil.rmtree(path)


def test_a_file_that_the_manifest_does_not_name_is_not_read(decoy):
    check_unnamed(decoy)


def test_a_checkpoints_manifest_may_not_be_a_link(decoy):
    path = checkpoint(decoy)
    shutil.move(path / "manifest.json", decoy / "elsewhere.json")
    (path / "manifest.json").symlink_to(decoy / "elsewhere.json")
    with pytest.raises(CheckpointError, match="manifest.json is a symbolic link"):
        find_latest(decoy)


@pytest.mark.parametrize("word", ["..", ".", "/", "../folder", "step-x", "step-00000005/../..", "\0"])
def test_latest_names_a_checkpoint_of_this_folder_or_does_not_count(decoy, word):
    path = checkpoint(decoy)
    (decoy / "latest").write_text(word)
    (decoy.parent / "manifest.json").write_text("{}")
    (decoy / "step-zzz").mkdir()
    (decoy / "step-zzz" / "manifest.json").write_text("{}")  # would be the newest by name
    assert find_latest(decoy) == path


@pytest.mark.parametrize("entry", [{"bytes": "3", "sha256": ""}, {"bytes": 3, "sha256": None}, {"bytes": None, "sha256": "x"}])
def test_a_size_that_is_no_number_is_damage(decoy, entry):
    path = checkpoint(decoy)
    rewritten(path, lambda files: files.update({"rng.npy": entry}))
    with pytest.raises(CheckpointError, match="manifest.json is damaged"):
        verify(path)


def test_pickled_objects_in_an_array_are_not_loaded(decoy):
    class Opened:
        def __reduce__(self):
            return os.mkdir, (str(decoy / "opened"),)

    path = checkpoint(decoy)
    np.save(path / "rng.npy", np.array([Opened()], dtype=object), allow_pickle=True)
    listed(path, "rng.npy", path / "rng.npy")
    with pytest.raises(ValueError, match="allow_pickle"):
        canonical.read_state(path)
    assert not (decoy / "opened").exists()


# ---------------------------------------------------------------- prepared directories


def forged(folder, change):
    """Change a prepared directory's manifest, with a fingerprint that fits."""
    value = json.loads((folder / "manifest.json").read_text())
    change(value)
    entries = sorted(value["files"].items())
    if all(isinstance(e.get("sha256"), str) for _, e in entries):
        digest = hashlib.sha256()
        for name, entry in entries:
            digest.update(f"{name} {entry['sha256']}\n".encode())
        value["fingerprint"] = digest.hexdigest()
    (folder / "manifest.json").write_text(json.dumps(value))


def entry_of(file):
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def check_prepared_names(folder):
    decoy = folder.parent / DECOY
    np.save(decoy, np.arange(5))
    for name in (f"../{DECOY}", str(decoy), f"train/../../{DECOY}"):
        make_pool(folder / "data")
        forged(folder / "data", lambda v, n=name: v["files"].update({n: entry_of(decoy)}))
        with pytest.raises(DataError, match="names a file that is not read"):
            Manifest.read(folder / "data")
        shutil.rmtree(folder / "data")


def check_prepared_links(folder):
    make_pool(folder / "data")
    shutil.move(folder / "data/train/shard-00000.bin", folder.parent / DECOY)
    (folder / "data/train/shard-00000.bin").symlink_to(folder.parent / DECOY)
    with pytest.raises(DataError, match="shard-00000.bin is a symbolic link"):
        Pool.open(folder / "data")
    (folder / "data/train/shard-00000.bin").unlink()
    shutil.copy(folder.parent / DECOY, folder / "data/train/shard-00000.bin")
    assert len(Pool.open(folder / "data"))
    shutil.move(folder / "data/train", folder.parent / "train")
    (folder / "data/train").symlink_to(folder.parent / "train")
    with pytest.raises(DataError, match="train is a symbolic link"):
        Manifest.read(folder / "data")


def test_a_prepared_directory_reads_nothing_outside_of_itself(decoy):
    check_prepared_names(decoy)


def test_a_prepared_directory_may_be_a_link_and_holds_none(decoy):
    check_prepared_links(decoy)


def check_changed_links(folder):
    """Who changes a directory writes files beside those of the manifest, so links of any name are refused."""
    for name in ("manifest.json.tmp", "labelling", "train/attributes/domain@1", "labels.html.tmp"):
        make_pool(folder / "data")
        assert Manifest.read_to_change(folder / "data").files
        (folder / "data" / name).symlink_to(folder.parent / DECOY)
        Manifest.read(folder / "data")
        with pytest.raises(DataError, match=f"{name} is a symbolic link"):
            remove_attributes(folder / "data", ["domain"])
        shutil.rmtree(folder / "data")


def test_a_directory_with_links_is_not_changed(decoy):
    check_changed_links(decoy)


def test_a_column_that_claims_more_rows_than_it_holds_is_damage(decoy):
    rows = 4321
    write_column(decoy / "c.arrow", AttributeSchema("d", ("a",)), np.zeros(rows, np.int64))
    raw = (decoy / "c.arrow").read_bytes()
    assert raw.count(rows.to_bytes(8, "little")) == 2  # the batch's length and the column's
    (decoy / "c.arrow").write_bytes(raw.replace(rows.to_bytes(8, "little"), (10**8).to_bytes(8, "little")))
    with pytest.raises(DataError, match="c.arrow is not a readable attribute column"):
        read_column(decoy / "c.arrow", 10**8)


def rename_attribute(value, name):
    value["attributes"][0]["name"] = name


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda v: rename_attribute(v, "../../x"), r"holds '../../x', which no manifest"),
        (lambda v: v["attributes"][0].update(revision="1/../../x"), "holds '1/../../x'"),
        (lambda v: v["references"].update({"../../secret": {}}), r"holds '../../secret'"),
        (lambda v: v["tokenizer"].update(file="../../tokenizer.model"), r"holds '../../tokenizer.model'"),
        (lambda v: v["parts"].update({"../train": v["parts"]["train"]}), r"holds '../train'"),
        (lambda v: v["tokenizer"].update(file="unlisted.model"), "does not vouch for unlisted.model"),
        (lambda v: v["references"].update({"unlisted": {}}), "does not vouch for references/unlisted.jsonl"),
        (lambda v: v["parts"]["train"]["shards"].append(3), "does not vouch for train/shard-"),
        (lambda v: v["files"].pop("train/shard-00000.bin"), "does not vouch for train/shard-00000.bin"),
        (lambda v: v["files"]["train/shard-00000.bin"].update(bytes="9"), "holds {'bytes': '9'"),
        (lambda v: v["files"].update({"x": 3}), "is not a manifest of mads"),
        (lambda v: v.update(parts=[3]), "is not a manifest of mads|holds 3"),
        (lambda v: v.update(tokenizer=3), "is not a manifest of mads"),
    ],
)
def test_every_name_in_a_manifest_is_checked(decoy, change, words):
    make_pool(decoy)
    try:
        forged(decoy, change)
    except AttributeError:  # a file's entry that is no entry: there is no fingerprint to forge
        value = json.loads((decoy / "manifest.json").read_text())
        change(value)
        (decoy / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match=words):
        Manifest.read(decoy)


def test_a_reference_task_may_not_be_a_link(decoy):
    (decoy.parent / "secret").write_text(json.dumps({"text": "secret", "part": "direction"}))
    (decoy / "references").mkdir()
    (decoy / "references" / "a.jsonl").symlink_to(decoy.parent / "secret")
    with pytest.raises(DataError, match="a.jsonl is a symbolic link"):
        direction_texts(decoy)


def test_a_model_folder_reads_its_own_files(decoy):
    kinds = [{"type": "m.Transformer", "path": ""}, {"type": "m.Pooling", "path": "../other"}]
    (decoy / "modules.json").write_text(json.dumps(kinds))
    (decoy.parent / "other").mkdir()
    (decoy.parent / "other" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    with pytest.raises(DataError, match="modules.json: '../other/config.json' is no name"):
        _pools_by_mean(str(decoy))


# ---------------------------------------------------------------- run folders


@pytest.mark.parametrize("key", ["round", "shards", "samples", "tokens", "heldout_shards", "fingerprint"])
@pytest.mark.parametrize("value", ["../../x", -1, 1.5, True, None, [1]])
def test_a_pool_history_holds_counts_only(decoy, key, value):
    line = {"round": 0, "shards": 1, "samples": 2, "tokens": 3, "fingerprint": "f", "heldout_shards": 1}
    (decoy / "pool.jsonl").write_text(json.dumps(line) + "\n")
    assert len(PoolHistory.read(decoy).entries) == 1
    if key == "fingerprint" and isinstance(value, str):
        return
    (decoy / "pool.jsonl").write_text(json.dumps(line | {key: value}) + "\n")
    with pytest.raises(DataError, match="is no line of a pool history"):
        PoolHistory.read(decoy)


@pytest.mark.parametrize("round_", ["../../x", -1, 1.0, True, None])
def test_a_decisions_round_is_a_number(decoy, round_):
    with pytest.raises(ValueError, match="is no round of a run"):
        decision_path(decoy, round_)
    (decoy / "decisions.jsonl").write_text(json.dumps({"round": round_, "step": 0}) + "\n")
    with pytest.raises(ValueError, match="is no round of a run"):
        MetricsWriter(decoy, resume_step=3)


def begin(folder):
    """What a run does first in its folder."""
    Trainer._find_checkpoint(SimpleNamespace(root=folder, topology=OneRank(), config=compose([])))


def check_run_links(folder):
    """A run does not begin where it would write or remove through a link."""
    decoy = folder.parent / DECOY
    decoy.write_text("mine")
    for name in (
        *("metrics.jsonl", "metrics.jsonl.tmp", "config.yaml.tmp", "pool.jsonl", "pool.jsonl.tmp", "report.html.tmp"),
        *("decisions/round-00000.npy.tmp", "profile/steps-1-2.operators.txt", "checkpoints/latest.tmp", "checkpoints/.saving-1"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(decoy)
        with pytest.raises(DataError, match=f"{name} is a symbolic link"):
            begin(folder)
        (folder / name).unlink()
    for name in ("decisions", "profile", "tensorboard", "wandb"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).symlink_to(folder.parent)
        with pytest.raises(DataError, match=f"{name} is a symbolic link"):
            begin(folder)
        (folder / name).unlink()
    (folder / "checkpoints").rmdir()
    (folder.parent / "large").mkdir()
    (folder / "checkpoints").symlink_to(folder.parent / "large")
    (folder / "notes").symlink_to(decoy)  # nothing that a run writes
    begin(folder)


def test_a_run_does_not_write_through_links(decoy):
    check_run_links(decoy)


def test_a_file_is_not_written_through_a_link(decoy):
    (decoy / "report.html.tmp").symlink_to(decoy.parent / DECOY)
    before = (decoy.parent / DECOY).read_bytes()
    with pytest.raises(OSError, match="report.html.tmp"):
        write_atomically(decoy / "report.html", "x")
    (decoy / "report.html.tmp").unlink()
    (decoy / "report.html").symlink_to(decoy.parent / DECOY)
    write_atomically(decoy / "report.html", "x")  # the link is replaced
    assert (decoy.parent / DECOY).read_bytes() == before and (decoy / "report.html").read_text() == "x"


def test_a_fresh_run_removes_decisions_and_nothing_else(decoy):
    (decoy / "decisions").mkdir()
    for name in ("thesis.doc", "round-00001.npy", "round-00002.npy.tmp"):
        (decoy / "decisions" / name).write_text("x")
    MetricsWriter(decoy).close()
    assert os.listdir(decoy / "decisions") == ["thesis.doc"]


# ---------------------------------------------------------------- what a configuration may build


def check_only_classes_of_the_kind(folder):
    attacks = [
        {"_target_": "os.mkdir", "path": str(folder / "made")},
        {"_target_": "subprocess.Popen", "args": ["touch", str(folder / "made")]},
        {"_target_": "subprocess.run", "args": ["touch", str(folder / "made")]},
        {"_target_": "io.FileIO", "file": str(folder / "made"), "mode": "w"},
        {"_target_": "pathlib.Path", "path": "x"},
        {"_target_": "mads.agents.LabelAgent", "attribute": {"_target_": "os.mkdir", "path": str(folder / "made")}},
        {"_target_": "mads.agents.LabelAgent", "attribute": [{"_target_": "os.mkdir", "path": str(folder / "made")}]},
        {"_target_": "mads.agents.LabelAgent", "attribute": "x", "_args_": [1]},
        {"_target_": "mads.agents.LabelAgent", "attribute": "x", "_partial_": True},
    ]
    for where in ("agents.members.x", "data.attributes.x", "data.source", "data.references"):
        for node in attacks:
            with pytest.raises(ConfigError, match=where):
                build(node, where)
            assert os.listdir(folder) == []


def test_a_target_is_a_class_of_the_kind_that_its_key_asks_for(decoy):
    check_only_classes_of_the_kind(decoy)
    labeller = compose([]).data.attributes.domain
    with pytest.raises(ConfigError, match="agents.members.x: .* has no score; a class with score, learn, load_state belongs"):
        build(labeller, "agents.members.x")


def test_yaml_of_a_run_folder_makes_no_objects(decoy):
    from mads.cli import main

    (decoy / "metrics.jsonl").write_text('{"kind": "end", "steps": 1, "tokens": 1, "seconds": 1}\n')
    made = decoy / "made"
    (decoy / "config.yaml").write_text(f"x: !!python/object/apply:os.mkdir ['{made}']\n")
    assert main(["report", str(decoy)]) == 2 and not made.exists()
    assert main(["explain", str(decoy), "--sample", "0", "--round", "0"]) == 2 and not made.exists()


def test_the_attacks_would_work_without_the_checks(decoy):
    """The decoys are real: the same names, opened plainly, lead out."""
    np.save(decoy.parent / DECOY, np.arange(5))
    assert (decoy / f"../{DECOY}").is_file()
    subprocess.run(["touch", str(decoy / "made")], check=True)
    assert (decoy / "made").exists()
