import json
import struct
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest

from mads.logging import WandbSink
from mads.logging.wandb import flatten, stored_run_id


def test_disabled_needs_neither_package_nor_files(tmp_path):
    code = (
        "import sys; sys.modules['wandb'] = None\n"
        "from mads.logging import WandbSink\n"
        f"s = WandbSink('disabled', 'mads', {str(tmp_path)!r}, {{}}); s.log({{'kind': 'train', 'step': 1}}); s.finish()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not list(tmp_path.iterdir())


def test_unknown_mode_is_named(tmp_path):
    with pytest.raises(ValueError, match="sometimes"):
        WandbSink("sometimes", "mads", tmp_path, {})


def test_flatten_keeps_numbers_only():
    line = {"loss": 1.5, "heldout": {"news": 2.0, "web": None}, "name": "x", "ok": True}
    assert flatten(line, "eval") == {"eval/loss": 1.5, "eval/heldout/news": 2.0}


def test_the_run_id_stays_with_the_folder(tmp_path):
    first = stored_run_id(tmp_path)
    assert stored_run_id(tmp_path) == stored_run_id(tmp_path, first) == first
    with pytest.raises(ValueError, match="other"):
        stored_run_id(tmp_path, "other")


ONE_LIFE = """
import sys
from mads.console.record import DecisionRecord
from mads.logging import WandbSink
sink = WandbSink("offline", "mine", sys.argv[1], {"train": {"steps": 2}})
sink.log({"kind": "train", "step": int(sys.argv[2]), "loss": float(sys.argv[3]), "nonfinite": {"lr": "nan"}, "lr": None})
sink.log({"kind": "phase", "name": "loader", "step": int(sys.argv[2]), "seconds": 0.5})
sink.decision(DecisionRecord(0, 1, 10, "mads", {"domain": 1.0}, {}, {}, 1, 1, 1, 0, 1))
sink.finish()
"""


def records(path):
    """Of a .wandb file: 7 bytes, then LevelDB's log format: blocks of 32 KiB with pieces of (checksum, size, kind) and bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, piece = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", raw[at : at + 7])
        piece, at = piece + raw[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(piece)
            piece = b""


def test_offline_files_of_two_lives_are_one_run_with_all_numbers(tmp_path):
    for step, loss in ((1, 2.0), (2, 1.0)):
        subprocess.run([sys.executable, "-c", ONE_LIFE, str(tmp_path), str(step), str(loss)], check=True, timeout=240)
    stored = json.loads((tmp_path / "wandb.json").read_text())["run_id"]
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert [p.name for p in files] == [f"run-{stored}.wandb"] * 2
    for path, step, loss in zip(files, (1, 2), (2.0, 1.0)):
        found = list(records(path))
        [run] = [r.run for r in found if r.WhichOneof("record_type") == "run"]
        assert (run.run_id, run.project, run.display_name) == (stored, "mine", tmp_path.name)
        history = [
            {"/".join([*i.nested_key]) or i.key: json.loads(i.value_json) for i in r.history.item if not i.key.startswith("_")}
            for r in found
            if r.WhichOneof("record_type") == "history"
        ]
        numbers = [{k: v for k, v in line.items() if not k.startswith("_")} for line in history]
        assert numbers == [
            {"step": step, "train/loss": loss},
            {"step": step, "phase/loader/seconds": 0.5},
            {"step": 1, "decision/round": 0, "decision/theta/domain": 1.0},
        ]


def check_same_run():
    import wandb

    asked = []

    def init(**options):
        asked.append(options)
        return SimpleNamespace(define_metric=lambda *a, **k: None, log=lambda values: None, finish=lambda: None)

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(wandb, "login", lambda **_: True)
        patch.setattr(wandb, "init", init)
        for _ in range(2):
            WandbSink("online", "mine", folder, {"a": 1}).finish()
    first, second = asked
    assert first == second | {"settings": first["settings"]}
    assert (first["mode"], first["project"], first["resume"], len(first["id"])) == ("online", "mine", "allow", 8)


def test_online_a_second_life_asks_for_the_same_run():
    check_same_run()


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", "3"])
def test_a_damaged_id_is_told(tmp_path, text):
    (tmp_path / "wandb.json").write_text(text)
    with pytest.raises(ValueError, match="wandb.json holds no W&B run id .* remove it"):
        stored_run_id(tmp_path)


def test_online_without_a_key_stops_before_training(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(RuntimeError, match="wandb login.*offline"):
        WandbSink("online", "mads", tmp_path, {})


LOST = """
import os, signal, sys, time
from pathlib import Path
from mads.logging import WandbSink
sink = WandbSink("offline", "mine", sys.argv[1], {})
below = [int(p) for t in Path("/proc/self/task").glob("*/children") for p in t.read_text().split()]
for pid in below:
    os.kill(pid, signal.SIGTERM)
time.sleep(1)
for step in range(4):
    sink.log({"kind": "train", "step": step, "loss": 1.0})
    time.sleep(0.2)
sink.finish()
print("went on", len(below))
"""


def test_a_run_outlives_the_process_of_wandb(tmp_path):
    """A cluster that preempts may send SIGTERM to every process of a step, and that one dies of it."""
    done = subprocess.run([sys.executable, "-c", LOST, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("went on") and int(done.stdout.split()[-1]) > 0, done.stderr
    assert done.stderr.count("W&B has ended") == 1 and "metrics.jsonl has everything" in done.stderr
