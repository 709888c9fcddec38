import json
import subprocess
import sys

import pytest

from mads.console.record import DecisionRecord
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


def test_offline_writes_a_run_and_resumes_the_same_id(tmp_path):
    pytest.importorskip("wandb")
    record = DecisionRecord(0, 1, 10, "mads", {"domain": 1.0}, {}, {}, 1, 1, 1, 0, 1)
    for loss in (2.0, 1.0):
        sink = WandbSink("offline", "mads", tmp_path, {"train": {"steps": 2}})
        sink.log({"kind": "train", "step": 1, "loss": loss})
        sink.log({"kind": "phase", "name": "train", "step": 1, "seconds": 0.5})
        sink.decision(record)
        sink.finish()
    stored = json.loads((tmp_path / "wandb.json").read_text())["run_id"]
    written = {p.name for p in tmp_path.glob("wandb/offline-run-*/run-*.wandb")}
    assert written == {f"run-{stored}.wandb"}


def test_online_without_a_key_stops_before_training(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(RuntimeError, match="wandb login.*offline"):
        WandbSink("online", "mads", tmp_path, {})
