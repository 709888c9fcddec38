import json
import math
from pathlib import Path

import numpy as np
import pytest

from mads.console.record import DecisionRecord, LabelRecord
from mads.logging import MetricsWriter, read_lines, truncate_after
from mads.logging.metrics import LogError


def decision(round_, step):
    label = LabelRecord("news", 0.5 + round_, 0.01, 0.002, 8, 900, 0.3, 0.4)
    return DecisionRecord(
        round_, step, step * 100, "mads", {"domain": 1.0}, {"domain": 0.2}, {"domain": [label]}, 10, 1000, 1000, 0, 7
    )


def live(writer, steps):
    """What the loop writes, in its order: decide, train, evaluate, checkpoint."""
    for step in steps:
        if step % 4 == 1:
            writer.decision(decision(step // 4, step - 1))
        writer.write("train", step=step, loss=10 / step)
        writer.write("phase", name="train", step=step, seconds=0.1)
        if step % 2 == 0:
            writer.write("eval", step=step, heldout={"news": 1 / step})


def files(folder):
    return {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "decisions.jsonl")}


@pytest.mark.parametrize("checkpoint, killed", [(4, 5), (4, 7), (6, 6), (3, 8), (8, 8)])
def test_k6_files_of_a_resumed_run_equal_the_undisturbed_ones(tmp_path, checkpoint, killed):
    with MetricsWriter(tmp_path / "a") as writer:
        live(writer, range(1, 11))
        writer.write("end", steps=10)
    with MetricsWriter(tmp_path / "b") as writer:
        live(writer, range(1, killed + 1))
    with open(tmp_path / "b/metrics.jsonl", "a") as f:
        f.write('{"kind": "train", "st')  # kill -9 in the middle of a line
    with MetricsWriter(tmp_path / "b", resume_step=checkpoint) as writer:
        live(writer, range(checkpoint + 1, 11))
        writer.write("end", steps=10)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_lines_written_again_at_the_resumed_step_are_taken_once(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("eval", step=4, heldout_mean=2.0)
        writer.decision(decision(1, 4))
    with MetricsWriter(tmp_path, resume_step=4) as writer:
        writer.write("eval", step=4, heldout_mean=2.0)
        writer.write("phase", name="evaluation", step=4, seconds=1.0)
        writer.decision(decision(1, 4))
        writer.decision(decision(2, 8))
    assert [v["kind"] for v in read_lines(tmp_path / "metrics.jsonl")] == ["eval", "phase"]
    assert [v["round"] for v in read_lines(tmp_path / "decisions.jsonl")] == [1, 2]


def test_each_line_is_on_disk_at_once(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write("train", step=step, loss=1.0)
        assert len(read_lines(tmp_path / "metrics.jsonl")) == step


def test_a_fresh_start_sets_the_old_files_aside(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", step=1, loss=1.0)
    old = files(tmp_path)["metrics.jsonl"]
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", step=1, loss=2.0)
    assert [v["loss"] for v in read_lines(tmp_path / "metrics.jsonl")] == [2.0]
    assert (tmp_path / "metrics.jsonl.discarded").read_bytes() == old


def test_truncate_after_keeps_earlier_lines_byte_for_byte_and_counts_the_rest(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"kind": "train", "step": s, "loss": math.pi / s}) + "\n" for s in (1, 2, 3, 4)]
    path.write_text("".join(lines) + json.dumps({"kind": "end", "steps": 2}) + "\n" + '{"kind"')
    assert truncate_after(path, 2) == 3
    assert path.read_text() == "".join(lines[:2])
    assert truncate_after(path, 2) == 0
    assert not list(tmp_path.glob("*.tmp"))
    assert truncate_after(tmp_path / "missing.jsonl", 2) == 0 and not (tmp_path / "missing.jsonl").exists()


@pytest.mark.parametrize("bad, message", [("nonsense\n", "line 2"), ("[1]\n", "line 2"), ('{"kind": "train"}\n', "step")])
def test_a_damaged_line_is_named_and_the_file_left_alone(tmp_path, bad, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n' + bad + '{"kind": "train", "step": 2}\n')
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        truncate_after(path, 1)
    assert path.read_bytes() == before


def test_numbers_json_lacks_become_null_and_are_named(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        line = writer.write("eval", step=np.int64(3), heldout={"a": np.float32(1.5), "b": math.nan}, norms=[1.0, -math.inf])
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == line
    assert line["heldout"] == {"a": 1.5, "b": None} and line["step"] == 3 and line["norms"] == [1.0, None]
    assert line["nonfinite"] == {"heldout.b": "nan", "norms[1]": "-inf"}


def test_unknown_kinds_and_objects_without_json_form_are_refused(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="loss"):
            writer.write("loss", step=1)
        with pytest.raises(TypeError, match="object"):
            writer.write("train", step=1, loss=object())
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["metrics.jsonl", "decisions.jsonl"])
def test_a_full_disk_is_told_with_the_file_and_the_bytes(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    writer = MetricsWriter(tmp_path)
    with pytest.raises(LogError, match=rf"{tmp_path / name}: \d+ bytes could not be written \(No space left on device\)"):
        live(writer, [1])


def test_ids_that_cannot_be_written_are_told_too(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        (tmp_path / "decisions").write_text("a file where the folder should be")
        with pytest.raises(LogError, match=r"round-00000.npy: 24 bytes could not be written"):
            writer.decision(decision(0, 0), np.arange(3))
