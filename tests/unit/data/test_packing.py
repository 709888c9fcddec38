import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mads.data import packing as packing_module
from mads.data.batch import IGNORE, make_batch, sum_by_sample, tokens_by_sample
from mads.data.packing import Packer, pack
from mads.data.schema import DataError


def best_fit_oracle(lengths, seq_length, open_rows, span):
    """Best fit by exhaustive search over open rows; rows numbered in the order they were opened."""
    rows, reached, short = [], {}, []  # [free, members]; open row -> when it reached its free space; rows of short samples
    for i, n in enumerate(lengths):
        for r in [r for r in reached if rows[r][1][0] < i - span]:
            del reached[r]
        fitting = [r for r in reached if rows[r][0] >= n]
        if n == seq_length or not fitting:
            rows.append([seq_length - n, [i]])
            row = len(rows) - 1
            if n < seq_length:
                short.append(row)
                if len(short) > open_rows:
                    reached.pop(short[-open_rows - 1], None)
        else:  # least free space; of equals the row that reached it last
            row = min(fitting, key=lambda r: (rows[r][0], -reached[r]))
            rows[row][0] -= n
            rows[row][1].append(i)
        reached[row] = i
        if not rows[row][0]:
            del reached[row]
    return [members for _, members in rows]


def random_lengths(seed, count, seq_length, low, high):
    return np.minimum(np.random.default_rng(seed).integers(low, high + 1, count), seq_length)


def check_packing(seq_length, low, high, open_rows, span, chunk):
    """Against the oracle, taken by one, by seven and all at once."""
    before = Packer.SPAN, packing_module._CHUNK
    Packer.SPAN, packing_module._CHUNK = span, chunk
    try:
        for seed in range(4):
            lengths = random_lengths(seed, 150, seq_length, low, high)
            expected = best_fit_oracle(lengths.tolist(), seq_length, open_rows, span)
            for count in (1, 7, 0):
                packer, got = Packer(lengths, seq_length, open_rows), []
                while count and (packing := packer.take(count)) is not None:
                    assert packing.rows == count
                    got.append(packing)
                got.append(packer.take_all())
                assert [p.samples_of_row(r).tolist() for p in got for r in range(p.rows)] == expected
    finally:
        Packer.SPAN, packing_module._CHUNK = before


@pytest.mark.parametrize(
    "seq_length, low, high, open_rows", [(16, 1, 16, 3), (32, 4, 40, 64), (7, 1, 7, 1), (64, 30, 64, 2), (5, 5, 9, 4)]
)
@pytest.mark.parametrize("span, chunk", [(1 << 15, 4096), (9, 4096), (1 << 15, 5), (9, 1), (40, 7)])
def test_packing_equals_brute_force_best_fit_however_it_is_taken(seq_length, low, high, open_rows, span, chunk):
    check_packing(seq_length, low, high, open_rows, span, chunk)


def test_rows_come_out_long_before_the_last_sample_is_placed():
    lengths = random_lengths(0, 200_000, 64, 4, 64)
    lengths[1000:] = 64  # one row of short samples stays open beside full rows
    lengths[5] = 3
    packer = Packer(lengths, 64)
    assert packer.take(100).rows == 100 and packer._placed < 60_000
    assert Packer(random_lengths(1, 200_000, 64, 4, 64), 64).take(8).rows == 8


def test_packing_places_every_sample_once_and_fills_rows():
    lengths = random_lengths(0, 20_000, 32, 1, 32)
    packing = pack(lengths, 32)
    assert sorted(packing.order.tolist()) == list(range(20_000))
    rows = [packing.samples_of_row(r) for r in range(packing.rows)]
    assert all(lengths[row].sum() <= 32 for row in rows) and lengths.sum() > 0.97 * 32 * packing.rows
    first = [row[0] for row in rows]
    assert first == sorted(first)  # early decisions come first


def test_packing_edge_cases():
    assert pack(np.zeros(0, int), 8).rows == 0 and Packer(np.zeros(0, int), 8).take(1) is None
    full = pack(np.full(5, 8), 8)
    assert full.rows == 5 and full.order.tolist() == list(range(5))
    packer = Packer(np.full(5, 8), 8)
    assert packer.take(6) is None and packer.take(5).order.tolist() == list(range(5)) and packer.take(0).rows == 0
    with pytest.raises(DataError, match="sample 1 of the list has 9 tokens"):
        pack(np.array([3, 9]), 8)
    with pytest.raises(DataError, match="sample 0 of the list has 0 tokens"):
        pack(np.array([0, 4]), 8)
    with pytest.raises(ValueError, match="seq_length 0"):
        pack(np.array([1]), 0)


def random_rows(seed, rows=5, seq_length=24):
    rng, out = np.random.default_rng(seed), []
    for _ in range(rows):
        row, free = [], seq_length
        while free and rng.random() < 0.85:
            row.append(rng.integers(1, 300, rng.integers(1, free + 1)).astype(rng.choice([np.uint16, np.int32])))
            free -= len(row[-1])
        out.append(row)
    return out


def test_batch_equals_a_loop_and_no_target_crosses_a_boundary():
    for seed in range(8):
        rows = random_rows(seed)
        batch = make_batch(rows, 24)
        segment = 0
        for r, row in enumerate(rows):
            place = 0
            for sample in row:
                for k, token in enumerate(sample.tolist()):
                    target = int(sample[k + 1]) if k + 1 < len(sample) else IGNORE
                    got = (batch.tokens[r, place], batch.labels[r, place], batch.positions[r, place], batch.segments[r, place])
                    assert [int(x) for x in got] == [token, target, k, segment]
                    place += 1
                segment += 1
            padding = [x[r, place:].unique().tolist() for x in (batch.tokens, batch.labels, batch.positions, batch.segments)]
            assert padding == ([[], [], [], []] if place == 24 else [[0], [IGNORE], [0], [-1]])
        assert batch.samples == segment and all(x.dtype == torch.int64 for x in (batch.tokens, batch.labels, batch.segments))
        assert batch.valid_tokens == sum(len(s) - 1 for row in rows for s in row)


def test_sample_sums_in_a_packed_batch_equal_each_sample_alone():
    rows = random_rows(3)
    batch = make_batch(rows, 24)
    table = torch.randn(300, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # logits of a bigram model
    losses = F.cross_entropy(table[batch.tokens].flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="none")
    alone = []
    for sample in (torch.as_tensor(s.astype(np.int64)) for row in rows for s in row):
        one_token = len(sample) == 1
        loss = F.cross_entropy(table[sample[:-1]], sample[1:], reduction="sum")
        alone.append(torch.zeros((), dtype=torch.float64) if one_token else loss)
    torch.testing.assert_close(sum_by_sample(losses.view(batch.tokens.shape), batch), torch.stack(alone), rtol=1e-12, atol=1e-12)
    assert tokens_by_sample(batch).tolist() == [len(s) - 1 for row in rows for s in row]


def test_batch_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="row 1 holds 9 tokens"):
        make_batch([[np.arange(3)], [np.arange(5), np.arange(4)]], 8)
    with pytest.raises(ValueError, match="the shortest sample has 0 tokens"):
        make_batch([[np.zeros(0, np.int64)]], 8)
    with pytest.raises(ValueError, match="at least one row"):
        make_batch([], 8)
    assert make_batch([[], []], 4).valid_tokens == 0


def test_segments_stay_on_the_cpu_and_sums_are_taken_where_the_values_are():
    """On a meta device nothing can be read: moving a batch and summing by sample must not look at its values there."""
    batch = make_batch([[np.arange(3), np.arange(2)], [np.arange(4)]], 5)
    moved = batch.to("meta")
    assert moved.tokens.device.type == moved.positions.device.type == "meta" and torch.equal(moved.segments, batch.segments)
    assert sum_by_sample(moved.tokens, moved).shape == (3,)
