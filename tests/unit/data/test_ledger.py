import numpy as np
import pytest

from mads.data.ledger import Ledger
from mads.data.schema import DataError


def test_d5_counts_equal_a_bincount_and_total_is_exact():
    rng, ledger = np.random.default_rng(0), Ledger(50)
    everything = [rng.integers(0, 50, n) for n in (7, 0, 100, 3)]
    for positions in everything:
        ledger.consume(positions)
    flat = np.concatenate(everything)
    assert ledger.counts.tolist() == np.bincount(flat, minlength=50).tolist()
    assert ledger.total == 110 and ledger.counts.dtype == np.uint16


def test_counts_saturate_and_do_not_wrap():
    ledger = Ledger(2)
    ledger.counts[0] = 65534
    ledger.consume(np.array([0, 0, 0, 1]))
    assert ledger.counts.tolist() == [65535, 1]
    ledger.consume(np.array([0]))
    assert ledger.counts[0] == 65535


def test_d5_save_and_load_and_any_npy_reader(tmp_path):
    ledger = Ledger(9)
    ledger.consume(np.array([1, 1, 8]))
    ledger.save(tmp_path / "ledger.npy")
    back = Ledger.load(tmp_path / "ledger.npy", 9)
    assert back.counts.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 1] and back.total == 3
    back.consume(np.array([0]))
    assert np.load(tmp_path / "ledger.npy", allow_pickle=False).tolist() == ledger.counts.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.npy"]


def test_damaged_foreign_and_missing_ledgers_are_refused(tmp_path):
    path = tmp_path / "ledger.npy"
    ledger = Ledger(9)
    ledger.save(path)
    with pytest.raises(DataError, match="counts 9 samples, the pool has 10"):
        Ledger.load(path, 10)
    raw = path.read_bytes()
    for broken in (raw[:-1], raw[:10], b"", raw[:140] + bytes([raw[140] ^ 1]) + raw[141:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="is damaged"):
            Ledger.load(path, 9)
    with pytest.raises(DataError, match="cannot read the ledger"):
        Ledger.load(tmp_path / "none.npy", 9)
    with pytest.raises(DataError, match="positions from -1"):
        ledger.consume(np.array([-1]))
    with pytest.raises(ValueError, match="at least one sample"):
        Ledger(0)
