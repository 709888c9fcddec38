"""Event files, read back record by record."""

import struct
import subprocess
import sys

from mads.console.record import DecisionRecord, LabelRecord
from mads.logging.tensorboard import TensorboardSink

TRAIN = {"kind": "train", "step": 4, "loss": 2.5, "tokens": 80, "nonfinite": {"lr": "nan"}, "lr": None}


def events(folder):
    """Every event of the files, oldest first: a TFRecord is length, its checksum, the event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("tensorboard/events.*")):
        raw = path.read_bytes()
        while raw:
            (size,) = struct.unpack("<Q", raw[:8])
            found.append(Event.FromString(raw[12 : 12 + size]))
            raw = raw[16 + size :]
    return found


def scalars(folder):
    return [(v.tag, e.step, v.simple_value) for e in events(folder) for v in e.summary.value]


def test_lines_and_decisions_become_scalars_by_step(tmp_path):
    sink = TensorboardSink(True, tmp_path)
    sink.log(TRAIN)
    sink.log({"kind": "phase", "name": "loader", "step": 4, "seconds": 0.5})
    sink.log({"kind": "end", "steps": 5, "tokens": 100, "seconds": 2.0})
    labels = {"domain": [LabelRecord("news", 0.25, chosen_share=0.5)]}
    sink.decision(DecisionRecord(1, 4, 80, "mads", {"domain": 1.0}, {"domain": 0.125}, labels, 3, 90, 100, 0, 7))
    sink.finish()
    assert scalars(tmp_path) == [
        ("train/loss", 4, 2.5),
        ("train/tokens", 4, 80.0),
        ("phase/loader/seconds", 4, 0.5),
        ("end/tokens", 5, 100.0),
        ("end/seconds", 5, 2.0),
        ("decision/round", 4, 1.0),
        ("decision/theta/domain", 4, 1.0),
        ("decision/agent_rewards/domain", 4, 0.125),
        ("decision/labels/domain/news/weight", 4, 0.25),
        ("decision/labels/domain/news/chosen_share", 4, 0.5),
    ]


def test_a_resumed_run_hides_what_it_writes_again(tmp_path):
    for resumed in (None, 3):
        sink = TensorboardSink(True, tmp_path, resumed)
        sink.log(TRAIN)
        sink.finish()
    starts = [e for e in events(tmp_path) if e.session_log.status == 1]
    assert [e.step for e in starts] == [4]  # SessionLog.START: earlier events from step 4 on are hidden


def test_off_needs_neither_package_nor_files(tmp_path):
    code = (
        "import sys; sys.modules['tensorboardX'] = None\n"
        "from mads.logging.tensorboard import TensorboardSink\n"
        f"s = TensorboardSink(False, {str(tmp_path)!r}); s.log({{'kind': 'train', 'step': 1, 'loss': 1.0}}); s.finish()\n"
        f"try: TensorboardSink(True, {str(tmp_path)!r})\n"
        "except RuntimeError as error: assert \"pip install 'mads[tensorboard]'\" in str(error)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not list(tmp_path.iterdir())


def test_bad_numbers_are_left_to_the_files(tmp_path):
    sink = TensorboardSink(True, tmp_path)
    sink.log({"kind": "eval", "step": 2, "heldout": {"news": None, "web": 3.0}, "ok": True})
    sink.finish()
    assert scalars(tmp_path) == [("eval/heldout/web", 2, 3.0)]
