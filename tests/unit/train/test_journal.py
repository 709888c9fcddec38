"""What a run writes about itself: phases, rates of progress, and silence on other ranks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_pool import OneRank
from run_support import OVERRIDES

from mads.checkpoint.saver import Saved
from mads.config.compose import ConfigError, compose
from mads.console.record import DecisionRecord
from mads.logging.metrics import MetricsWriter
from mads.train import journal as journals
from mads.train.journal import Journal


class Clock:
    """Seconds that pass only when a test says so."""

    now = 100.0

    def perf_counter(self):
        return self.now


class Second(OneRank):
    rank = 1


def parts():
    engine = SimpleNamespace(device="cpu", logical_shapes={"w": torch.Size([3, 4])})
    pool = type("Pool", (), {"total_tokens": 11, "__len__": lambda self: 2})()
    console = SimpleNamespace(round=2, pending=np.arange(3))
    return SimpleNamespace(engine=engine, pool=pool, console=console)


@pytest.fixture(autouse=True)
def facts(monkeypatch):
    monkeypatch.setattr(journals, "resolved", lambda model, engine: {"attention": model.attention, "device": engine.device})


@pytest.fixture
def opened(tmp_path, monkeypatch):
    clock, topology = Clock(), OneRank()
    monkeypatch.setattr(journals.time, "perf_counter", clock.perf_counter)
    topology.grid = "one rank"
    journal = Journal(compose([*OVERRIDES, f"run_dir={tmp_path}"]), topology)
    journal.open(None, 0, parts())
    return journal, clock


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


RESULT = SimpleNamespace(loss=5.5, grad_norm=0.7)


def test_phases_add_up_and_are_written_once_with_the_train_line(opened, tmp_path):
    journal, clock = opened
    for seconds, name in ((2.0, "train"), (0.5, "loader"), (3.0, "train"), (1.5, "evaluation")):
        with journal.phase(name):
            clock.now += seconds
    clock.now += 1.0  # time in no phase
    journal.train(4, 800, RESULT, 1e-3, 0)
    with journal.phase("train"):
        clock.now += 4.0
    journal.train(6, 1000, RESULT, 1e-3, 0)
    first, second = [line for line in lines(tmp_path) if line["kind"] == "train"]
    assert (first["seconds"], first["tokens_per_second"], first["step_seconds"]) == (8.0, 100.0, (2.0 + 3.0 + 0.5) / 4)
    assert (second["seconds"], second["tokens_per_second"], second["step_seconds"]) == (4.0, 50.0, 2.0)
    assert (first["loss"], first["lr"], first["grad_norm"], first["round"], first["tokens"]) == (5.5, 1e-3, 0.7, 0, 800)
    phases = [(p["name"], p["step"], p["seconds"]) for p in lines(tmp_path) if p["kind"] == "phase"]
    assert phases == [("train", 4, 5.0), ("loader", 4, 0.5), ("evaluation", 4, 1.5), ("train", 6, 4.0)]


def test_selection_and_speed_are_in_the_train_line(opened, tmp_path, monkeypatch):
    journal, clock = opened
    with journal.selecting():
        clock.now += 3.0
        journal.decision(record(), np.arange(3))
    with journal.phase("train"):
        clock.now += 2.0
    journal.train(4, 800, RESULT, 1e-3, 0)
    with journal.phase("train"):
        clock.now += 4.0
    monkeypatch.setattr(journal, "_peak", 1e12)
    journal.train(6, 1600, RESULT, 1e-3, 0)
    first, second = [line for line in lines(tmp_path) if line["kind"] == "train"]
    assert (first["selection_seconds"], first["seconds"]) == (3.0, 5.0) and second["selection_seconds"] == 0.0
    model = journal._config.model
    matrices = model.num_layers * (32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 96) + 400 * 32  # model=nano, by hand
    each = 6 * (matrices + model.num_layers * 2 * 32 * 32)
    assert first["tflops"] == pytest.approx(each * 800 / 2.0 / 1e12) and "mfu" not in first  # a CPU has no known peak
    assert second["mfu"] == pytest.approx(second["tflops"]) == pytest.approx(each * 800 / 4.0 / 1e12)


def test_saves_are_written_down_and_failed_ones_said(opened, tmp_path, monkeypatch):
    journal, said = opened[0], []
    monkeypatch.setattr(journal, "message", said.append)
    journal.checkpoint(Saved(4, 0.25, 3.5, 1000, None))
    journal.checkpoint(Saved(8, 0.25, 3.5, 0, "rank 3: OSError: no room"))
    [line] = [line for line in lines(tmp_path) if line["kind"] == "checkpoint"]
    assert line == {"kind": "checkpoint", "step": 4, "stall_seconds": 0.25, "write_seconds": 3.5, "bytes": 1000}
    assert said == ["saving checkpoint 8 failed: rank 3: OSError: no room; the run stops at its next save or end"]


def test_the_end_is_written_only_by_a_finished_run_and_late_phases_are_not_lost(opened, tmp_path):
    journal, clock = opened
    with journal.phase("checkpoint"):
        clock.now += 2.5
    journal.close(6, 1000, finished=False)
    assert [(p["kind"], p["name"], p["seconds"]) for p in lines(tmp_path)] == [("phase", "checkpoint", 2.5)]
    again = Journal(journal._config, journal._topology)
    again.open(6, 1000, parts())
    clock.now += 9.0
    again.close(12, 2000, finished=True)
    assert lines(tmp_path)[-1].items() >= {"kind": "end", "steps": 12, "tokens": 2000, "seconds": 9.0}.items()


def test_a_resumed_journal_counts_from_the_checkpoint(opened, tmp_path):
    journal, clock = opened
    clock.now += 6.0
    journal.train(6, 900, RESULT, 1e-3, 0)
    clock.now += 2.0
    journal.train(8, 1300, RESULT, 1e-3, 0)  # after the checkpoint: written again by the resumed run
    journal.close(8, 1300, finished=False)
    again = Journal(journal._config, journal._topology)
    again.open(6, 900, parts())
    clock.now += 10.0
    again.train(8, 1400, RESULT, 1e-3, 0)
    assert [(x["step"], x["tokens"]) for x in lines(tmp_path) if x["kind"] == "train"] == [(6, 900), (8, 1400)]
    assert lines(tmp_path)[-1]["tokens_per_second"] == 50.0


def record():
    return DecisionRecord(1, 5, 640, "mads", {}, {}, {}, 3, 90, 100, 0, 7, seconds={"reference": 0.25, "probes": 0.5})


def test_a_decision_is_one_line_and_its_times_are_phases(opened, tmp_path):
    journal, _ = opened
    journal.decision(record(), np.arange(3))
    journal.evaluation(5, 640, {"heldout": {"a": 5.0}, "heldout_mean": 5.0, "references": {}, "references_mean": None})
    assert [json.loads(x)["hash"] for x in (tmp_path / "decisions.jsonl").read_text().splitlines()] == [7]
    phase, other, evaluation = lines(tmp_path)
    assert (phase["name"], phase["seconds"], other["name"], other["step"]) == ("reference", 0.25, "probes", 5)
    assert evaluation["heldout"] == {"a": 5.0} and evaluation["step"] == 5


def test_the_run_folder_says_what_ran(opened, tmp_path):
    from omegaconf import OmegaConf

    journal, _ = opened
    assert OmegaConf.load(tmp_path / "config.yaml") == journal._config
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["world_size"] == 1 and found["resolved"] == {"attention": "auto", "device": "cpu"}


def test_ranks_other_than_0_write_nothing(tmp_path):
    journal = Journal(compose([*OVERRIDES, f"run_dir={tmp_path}/run"]), Second())
    journal.open(None, 0, parts())
    journal.train(1, 100, RESULT, 1e-3, 0)
    journal.decision(None, np.arange(3))
    journal.evaluation(1, 100, {})
    journal.close(1, 100, finished=True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_cannot_be_written_is_a_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    topology = OneRank()
    topology.grid = "one rank"
    journal = Journal(compose([*OVERRIDES, f"run_dir={tmp_path}/file/run"]), topology)
    with pytest.raises(ConfigError, match="run_dir=.*file/run cannot be written .*choose another run_dir"):
        journal.open(None, 0, parts())


def test_two_lives_write_what_one_would(tmp_path):
    """MetricsWriter under the journal: the same decision at the checkpoint's step is taken once."""
    with MetricsWriter(tmp_path) as writer:
        writer.decision(record())
    with MetricsWriter(tmp_path, resume_step=5) as writer:
        writer.decision(record())
    assert len((tmp_path / "decisions.jsonl").read_text().splitlines()) == 1
