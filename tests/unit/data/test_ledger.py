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


def check_slices():
    """A whole ledger and its slices after the same global batches."""
    rng, whole = np.random.default_rng(1), Ledger(50)
    cuts = [0, 0, 17, 50]
    slices = [Ledger(50, a, b) for a, b in zip(cuts, cuts[1:])]
    counts = np.zeros(50, int)
    for n in (30, 0, 90):
        positions = rng.integers(0, 50, n)
        np.add.at(counts, positions, 1)
        for ledger in (whole, *slices):
            ledger.consume(positions)
    assert np.concatenate([s.counts for s in slices]).tolist() == whole.counts.tolist() == counts.tolist()
    assert {s.total for s in slices} == {120} and sum(int(s.counts.sum()) for s in slices) == 120
    return whole, slices


def test_d5_slices_count_their_part_of_the_global_batch_and_share_one_file(tmp_path):
    whole, slices = check_slices()
    whole.save(tmp_path / "whole")

    def send_all(counts, write):
        for ledger in slices:
            write(ledger.counts)

    slices[0].save(tmp_path / "sliced", send_all)
    slices[1].save(tmp_path / "nothing", lambda counts, write: None, writes=False)
    assert (tmp_path / "sliced").read_bytes() == (tmp_path / "whole").read_bytes() and not (tmp_path / "nothing").exists()
    for a, b in ((0, 50), (3, 20), (50, 50), (7, 7)):
        assert Ledger.load(tmp_path / "sliced", 50, a, b).counts.tolist() == whole.counts[a:b].tolist()
    with pytest.raises(DataError, match="counts of 50 samples came for a ledger of 60"):
        Ledger(60).save(tmp_path / "short", send_all)
    with pytest.raises(ValueError, match="5 to 3 of 9"):
        Ledger(9, 5, 3)


def test_the_file_is_what_numpy_would_write(tmp_path):
    for size in (1, 9, 12345):
        Ledger(size).save(tmp_path / "ledger")
        np.save(tmp_path / "array.npy", np.zeros(size, np.uint16))
        assert (tmp_path / "ledger").read_bytes()[:-40] == (tmp_path / "array.npy").read_bytes()


def test_a_ledger_of_a_pool_that_has_grown_keeps_its_counts(tmp_path):
    ledger = Ledger(6)
    ledger.consume(np.array([0, 5, 5]))
    ledger.save(tmp_path / "ledger")
    for a, b in ((0, 9), (0, 4), (4, 8), (7, 9)):
        grown = Ledger.load(tmp_path / "ledger", 9, a, b, saved=6)
        assert grown.counts.tolist() == [1, 0, 0, 0, 0, 2, 0, 0, 0][a:b] and (grown.total, grown.size) == (3, 9)
    with pytest.raises(DataError, match="counts 6 samples, the pool has 5"):
        Ledger.load(tmp_path / "ledger", 9, saved=5)


def test_a_full_disk_is_told_after_all_slices_have_arrived(tmp_path):
    arrived = []

    def send_all(counts, write):
        for _ in range(4):
            write(counts)
            arrived.append(len(counts))

    with pytest.raises(OSError):
        Ledger(8, 0, 2).save(tmp_path / "absent" / "ledger", send_all)
    assert arrived == [2, 2, 2, 2]
