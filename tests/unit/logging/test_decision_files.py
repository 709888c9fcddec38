import tempfile
from pathlib import Path

import numpy as np
import pytest
from test_metrics_writer import decision

from mads.console.record import DecisionHeader
from mads.logging import MetricsWriter
from mads.logging.decisions import decision_path, read_decision, write_decision


def _names(folder):
    return sorted(p.name for p in (folder / "decisions").iterdir())


def test_a_file_is_a_plain_array_with_its_header(tmp_path):
    ids = np.array([5, 3, 9 << 40], np.int64)
    values = np.load(write_decision(tmp_path, 3, ids))
    assert values[3:].tolist() == ids.tolist() and DecisionHeader.from_array(values[:3]) == DecisionHeader.of(3, ids)
    assert _names(tmp_path) == ["round-00003.npy"] and read_decision(tmp_path, 3).tolist() == ids.tolist()
    path = decision_path(tmp_path, 3)
    values[4] += 1
    np.save(path, values)
    with pytest.raises(ValueError, match="is damaged: its header is"):
        read_decision(tmp_path, 3)
    np.save(path, np.zeros(2))
    with pytest.raises(ValueError, match="no decision of a mads run"):
        read_decision(tmp_path, 3)


def test_k6_files_are_cut_back_with_the_lines():
    check_cut_back()


def check_cut_back():
    with tempfile.TemporaryDirectory() as folder:
        _check_cut_back(Path(folder))


def _check_cut_back(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for round_ in range(4):
            writer.decision(decision(round_, 4 * round_), np.arange(round_ + 2))
    write_decision(tmp_path, 4, np.arange(3))  # killed between the file and its line
    (tmp_path / "decisions" / "round-00005.npy.tmp").write_bytes(b"half")
    with MetricsWriter(tmp_path, resume_step=8):
        assert _names(tmp_path) == [f"round-0000{i}.npy" for i in range(3)]
    with MetricsWriter(tmp_path, resume_step=3):
        assert _names(tmp_path) == ["round-00000.npy"]
    with MetricsWriter(tmp_path):  # a fresh start
        assert _names(tmp_path) == []
