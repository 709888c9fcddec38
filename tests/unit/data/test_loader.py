import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from support import make_pool

from mads.data.batch import IGNORE
from mads.data.ledger import Ledger
from mads.data.loader import Loader
from mads.data.packing import pack
from mads.data.pool import Pool
from mads.data.schema import DataError

SEQ, GLOBAL = 32, 8


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return own_pool(tmp_path_factory.mktemp("pool"))[0]


@pytest.fixture(scope="module")
def ids(pool):
    return np.random.default_rng(5).permutation(pool.ids)


def own_pool(folder):
    """The fixtures' pool and order for checks that run without pytest."""
    pool = make_pool(folder, documents=80, seq_length=SEQ)
    return pool, np.random.default_rng(5).permutation(pool.ids)


def rest_of(loader):
    out = []
    while not loader.exhausted:
        out.append(loader.next())
    return out


def steps(pool, ids, *, micro=2, rank=0, size=1, prefetch=0, position=0, count=None, workers=0):
    with Loader(pool, SEQ, GLOBAL, micro, rank, size, prefetch, workers) as loader:
        loader.begin_round(3, ids, position)
        return rest_of(loader) if count is None else [loader.next() for _ in range(count)]


def rows_of(step):
    return torch.cat([b.tokens for b in step.micro_batches]), torch.cat([b.labels for b in step.micro_batches])


def check_same(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b):
        assert x.sample_ids.tolist() == y.sample_ids.tolist() and (x.valid_tokens, x.tokens) == (y.valid_tokens, y.tokens)
        assert len(x.micro_batches) == len(y.micro_batches)
        for p, q in zip(x.micro_batches, y.micro_batches):
            for name in ("tokens", "labels", "positions", "segments"):
                assert torch.equal(getattr(p, name), getattr(q, name))


@pytest.mark.parametrize("size, micro", [(1, 1), (1, 8), (2, 2), (4, 1), (4, 2)])
def test_d2_same_global_batch_for_every_dp_size_and_ranks_disjoint(pool, ids, size, micro):
    reference = steps(pool, ids, micro=GLOBAL)
    ranks = [steps(pool, ids, micro=micro, rank=r, size=size) for r in range(size)]
    for n, one in enumerate(reference):
        rows = torch.zeros(GLOBAL, SEQ, dtype=torch.int64)
        labels, seen = torch.zeros_like(rows), []
        for r in range(size):
            step = ranks[r][n]
            assert step.sample_ids.tolist() == one.sample_ids.tolist() and step.valid_tokens == one.valid_tokens
            for a, batch in enumerate(step.micro_batches):
                for m in range(micro):
                    row = a * size * micro + r * micro + m
                    rows[row], labels[row] = batch.tokens[m], batch.labels[m]
                    seen.append(row)
        assert sorted(seen) == list(range(GLOBAL))
        assert torch.equal(rows, rows_of(one)[0]) and torch.equal(labels, rows_of(one)[1])
        assert one.valid_tokens == int((labels != IGNORE).sum())


def test_d2_batches_hold_the_rows_of_the_packing_in_order(pool, ids):
    packing = pack(pool.lengths[pool.positions_of(ids)], SEQ)  # the whole list at once
    got = steps(pool, ids)
    assert len(got) == packing.rows // GLOBAL
    for n, step in enumerate(got):
        rows = rows_of(step)[0]
        expected = []
        for r in range(GLOBAL):
            members = ids[packing.samples_of_row(n * GLOBAL + r)]
            tokens = np.concatenate(pool.tokens(pool.positions_of(members)))
            assert rows[r, : len(tokens)].tolist() == tokens.tolist()
            expected += members.tolist()
        assert step.sample_ids.tolist() == expected and pool.ids[step.sample_positions].tolist() == expected


def check_d2(pool, ids):
    """Two ranks share the rows of each global batch without overlap."""
    one, ranks = steps(pool, ids, micro=GLOBAL), [steps(pool, ids, rank=r, size=2) for r in range(2)]
    for n, step in enumerate(one):
        shared = [b.tokens for a in range(2) for r in range(2) for b in ranks[r][n].micro_batches[a : a + 1]]
        assert torch.equal(torch.cat(shared), rows_of(step)[0])


def check_d3(pool, ids):
    for step in steps(pool, ids, count=4):
        samples = iter(pool.tokens(step.sample_positions))
        for batch in step.micro_batches:
            for s in range(batch.samples):  # each sample's tokens are the pool's, each target the next token of the same sample
                tokens = torch.as_tensor(next(samples).astype(np.int64))
                inside = batch.segments == s
                assert torch.equal(batch.tokens[inside], tokens)
                assert torch.equal(batch.labels[inside], torch.cat([tokens[1:], torch.tensor([IGNORE])]))


def test_d3_labels_belong_to_the_inputs_of_the_same_sample(pool, ids):
    check_d3(pool, ids)


def check_d4(pool, ids, prefetch):
    whole = steps(pool, ids)
    check_same(steps(pool, ids, prefetch=prefetch), whole)
    for position in range(1, len(whole)):
        check_same(steps(pool, ids, prefetch=prefetch, position=position), whole[position:])


@pytest.mark.parametrize("prefetch", [0, 1, 3, 50])
def test_d4_resume_at_any_step_and_any_prefetch_equals_the_uninterrupted_run(pool, ids, prefetch):
    check_d4(pool, ids, prefetch)


def check_d4_state(pool, ids):
    """What the thread packed ahead is not consumed."""
    with Loader(pool, SEQ, GLOBAL, 2, 0, 1, prefetch=9) as loader:
        loader.begin_round(3, ids)
        for n in range(3):
            assert loader.state()["position"] == n
            loader.next()


def test_d2_two_ranks_share_each_global_batch(pool, ids):
    check_d2(pool, ids)


def test_d4_state_counts_what_was_handed_out(pool, ids):
    check_d4_state(pool, ids)


def test_d4_resume_on_another_dp_size_and_at_the_end_of_the_round(pool, ids):
    with Loader(pool, SEQ, GLOBAL, 2, 0, 1, prefetch=2) as loader:
        loader.begin_round(3, ids)
        for _ in range(3):
            loader.next()
        state = loader.state()
    assert state["round"] == 3 and state["position"] == 3  # what was packed ahead does not count
    whole = [steps(pool, ids, micro=2, rank=r, size=4) for r in range(4)]
    for rank in range(4):
        with Loader(pool, SEQ, GLOBAL, 2, rank, 4, prefetch=2) as loader:
            loader.check_state(state)
            loader.begin_round(state["round"], ids, state["position"])
            assert loader.tokens_left == pool.lengths[pool.positions_of(ids)].sum() - sum(step.tokens for step in whole[rank][:3])
            check_same(rest_of(loader), whole[rank][3:])
            loader.begin_round(3, ids, position=len(whole[0]))
            assert loader.exhausted and loader.tokens_left < GLOBAL * SEQ
            with pytest.raises(DataError, match="round 3 has no batch left"):
                loader.next()


def test_d4_checkpoint_of_other_data_or_shape_is_refused(pool, tmp_path):
    other = make_pool(tmp_path, seed=9, seq_length=SEQ)
    loader = Loader(pool, SEQ, GLOBAL, 2, 0, 1)
    with pytest.raises(DataError) as error:
        loader.check_state(Loader(other, SEQ, GLOBAL, 2, 0, 1).state())
    assert pool.manifest.shards_fingerprint("train", 2) in str(error.value) and other.fingerprint in str(error.value)
    with pytest.raises(DataError, match="global_batch_size 4, this run has 8"):
        loader.check_state(Loader(pool, SEQ, 4, 2, 0, 1).state())
    loader.check_state(Loader(pool, SEQ, GLOBAL, 1, 1, 4).state())


def test_d4_a_pool_that_grew_continues_and_one_that_shrank_is_refused(pool):
    check_grown(pool, None)


def check_grown(pool, _):
    small = Pool.open(Path(pool.readers[0].bin_path).parents[1], shards=2)
    ids = np.random.default_rng(1).permutation(small.ids)
    before, after = Loader(small, SEQ, GLOBAL, 2, 0, 1), Loader(pool, SEQ, GLOBAL, 2, 0, 1)
    before.begin_round(4, ids)
    before.next()
    after.check_state(before.state())
    after.begin_round(4, ids, before.state()["position"])
    check_same(rest_of(after), rest_of(before))
    assert len(pool.shards) > 2 and after.state()["shards"] == len(pool.shards)
    with pytest.raises(DataError, match=f"trained on {len(pool.shards)} shards .* data.dir holds 2"):
        before.check_state(after.state())


def test_d5_ledger_counts_what_was_consumed_and_no_sample_comes_twice(pool, ids):
    check_d5(pool, ids)


def check_d5(pool, ids):
    ledger, seen = Ledger(len(pool)), []
    for step in steps(pool, ids, prefetch=2):
        ledger.consume(step.sample_positions)
        seen += step.sample_ids.tolist()
    assert len(seen) == len(set(seen)) == ledger.total == int(ledger.counts.sum()) <= len(ids)
    assert sorted(seen) == pool.ids[np.flatnonzero(ledger.counts)].tolist()


def check_alone(check, *args):
    """Run a check on a pool of its own (for tests/mutants)."""
    with tempfile.TemporaryDirectory() as folder:
        globals()[check](*own_pool(folder), *args)


def test_rounds_follow_each_other_with_prefetch(pool, ids):
    with Loader(pool, SEQ, GLOBAL, 2, 0, 1, prefetch=4) as loader:
        loader.begin_round(0, ids)
        loader.next()
        loader.begin_round(1, ids[::-1])
        got = rest_of(loader)
    check_same(got, steps(pool, ids[::-1]))


def test_begin_round_refuses_bad_lists(pool, ids):
    loader = Loader(pool, SEQ, GLOBAL, 2, 0, 1)
    with pytest.raises(DataError, match=f"1 of 21 sample ids occur again, one is {ids[4]}"):
        loader.begin_round(0, np.append(ids[:20], ids[4]))
    with pytest.raises(DataError, match="not in the pool"):
        loader.begin_round(0, np.append(ids[:20], 10**15))
    with pytest.raises(DataError, match="a global batch takes 8"):
        loader.begin_round(0, ids[:3])
    with pytest.raises(DataError, match="cannot be continued at batch 1000"):
        loader.begin_round(0, ids, position=1000)
    with pytest.raises(DataError, match="no batch left"):
        loader.next()


def test_impossible_shapes_name_the_numbers(pool):
    with pytest.raises(ValueError, match=r"global_batch_size 8 .* micro_batch_size 3 x data-parallel size 2 = 6"):
        Loader(pool, SEQ, 8, 3, 0, 2)
    with pytest.raises(ValueError, match="dp_rank 2 of dp_size 2"):
        Loader(pool, SEQ, 8, 2, 2, 2)
    with pytest.raises(ValueError, match="prefetch 0, workers 1"):
        Loader(pool, SEQ, 8, 2, 0, 1, prefetch=0, workers=1)
    with pytest.raises(ValueError, match="seq_length 16 is shorter"):
        Loader(pool, 16, 8, 2, 0, 1)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_an_error_while_packing_surfaces_in_next_and_can_be_retried(pool, ids, prefetch, monkeypatch):
    expected = steps(pool, ids)
    with Loader(pool, SEQ, GLOBAL, 2, 0, 1, prefetch) as loader:
        loader.begin_round(3, ids)
        first = loader.next()
        original, fail = pool.token_shards.tokens, [True]

        def broken(positions):
            if fail[0]:
                raise OSError("disk gone")
            return original(positions)

        monkeypatch.setattr(pool.token_shards, "tokens", broken)
        with pytest.raises(OSError, match="disk gone"):
            for _ in range(3):  # some batches may have been packed before the fault
                first = loader.next()
        fail[0] = False
        at = loader.position
        check_same(rest_of(loader), expected[at:])
        assert first.sample_ids.tolist() == expected[at - 1].sample_ids.tolist()


def check_read_ahead(pool, ids):
    """Samples whose pages were asked for are the pool's, in their order."""
    loader = Loader(pool, SEQ, GLOBAL, 4, 1, 2)
    loader.begin_round(3, ids)
    got = rest_of(loader)
    for step in got:
        assert len(set(step.sample_ids.tolist())) == len(step.sample_ids)
    decided = pack(pool.lengths[pool.positions_of(ids)], SEQ)
    taken = np.concatenate([step.sample_ids for step in got])
    assert taken.tolist() == ids[decided.order[: len(taken)]].tolist()


def test_read_ahead_leaves_the_samples_as_they_are(pool, ids):
    check_read_ahead(pool, ids)


def check_other_shards(pool, ids):
    """The state names the shards by their content."""
    with tempfile.TemporaryDirectory() as folder:
        other = make_pool(folder, documents=80, seed=9, seq_length=SEQ)
        with pytest.raises(DataError, match="was trained on"):
            Loader(pool, SEQ, GLOBAL, 2, 0, 1).check_state(Loader(other, SEQ, GLOBAL, 2, 0, 1).state())


def test_d4_shards_are_known_by_their_content(pool, ids):
    check_other_shards(pool, ids)


def test_rows_are_packed_and_pages_asked_for_a_step_ahead_and_no_further(pool, ids, monkeypatch):
    asked, expected = [], steps(pool, ids)
    monkeypatch.setattr(pool.token_shards, "will_need", lambda positions: asked.append(positions.tolist()))
    loader = Loader(pool, SEQ, GLOBAL, 4, 1, 2)
    loader.begin_round(3, ids)
    for step in range(3):
        got = loader.next()
        assert sorted(loader._plans) == [step + 1] and len(asked) == step + 2
        own = [p for p in got.sample_positions.tolist() if p in asked[step]]
        assert own == asked[step] and 0 < len(own) < len(got.sample_positions)  # this rank's samples, no others
    assert got.sample_ids.tolist() == expected[2].sample_ids.tolist()


def test_close_ends_the_thread(pool, ids):
    loader = Loader(pool, SEQ, GLOBAL, 2, 0, 1, prefetch=2)
    loader.begin_round(0, ids)
    loader.next()
    assert any(t.name.startswith("mads-loader") for t in threading.enumerate())
    loader.close()
    assert not any(t.name.startswith("mads-loader") for t in threading.enumerate())
