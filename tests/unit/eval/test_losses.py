"""Fixed batches over ranks, and held-out losses against a plain loop over documents."""

import numpy as np
import pytest
import torch
from fake_pool import OneRank
from support import make_pool

from mads.data.batch import IGNORE, sum_by_sample
from mads.data.pool import Pool
from mads.data.schema import DataError
from mads.eval.heldout import HeldOut
from mads.eval.losses import FixedBatches, spread
from mads.reward.reference import ReferenceTask


def samples(count, seed=0, longest=32):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 300, rng.integers(1, longest + 1)) for _ in range(count)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count, rows", [(0, 2), (1, 2), (17, 2), (40, 3)])
def test_every_rank_gets_as_many_turns_and_every_batch_comes_once(count, rows, ranks):
    batches = FixedBatches(samples(count), 32, rows)
    shares = [batches.share_of(rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for i in share if i is not None) == list(range(batches.count))
    assert len(shares[0]) == -(-batches.count // ranks)


def test_batches_hold_every_sample_once_and_name_it():
    given = samples(40)
    batches = FixedBatches(given, 32, 3)
    seen = []
    for index in range(batches.count):
        batch, members = batches.batch(index)
        assert batch.samples == len(members) and batch.tokens.shape[0] <= 3
        for segment, member in enumerate(members):
            assert batch.tokens[batch.segments == segment].tolist() == given[member].tolist()
        seen += members.tolist()
    assert sorted(seen) == list(range(40))
    assert batches.targets.tolist() == [len(s) - 1 for s in given]


def score(tokens):
    """A made-up loss of each target that depends on the token before it, and its sum over a sample."""
    return sum(((int(a) * 31 + int(b) * 17) % 101) / 7 for a, b in zip(tokens[:-1], tokens[1:]))


class FakeModel:
    """Scores a packed batch by the same rule, so that only packing and bookkeeping are under test."""

    calls = 0

    def sample_losses(self, batches):
        self.calls += len(batches)
        return [self._of(batch) for batch in batches]

    def _of(self, batch):
        value = ((batch.tokens * 31 + batch.labels * 17) % 101) / 7
        return sum_by_sample(torch.where(batch.labels == IGNORE, 0.0, value), batch)


class Rank(OneRank):
    """One of several replicas; what the others gather is collected by hand."""

    def __init__(self, rank, ranks):
        self.rank, self.ranks = rank, ranks

    def size(self, axis):
        return self.ranks

    def coordinate(self, axis):
        return self.rank


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_spread_gives_every_sample_its_own_value_and_equal_work(ranks):
    given, total, calls = samples(30), np.zeros(30), set()
    for rank in range(ranks):
        model = FakeModel()
        part = spread(FixedBatches(given, 32, 2), model.sample_losses, Rank(rank, ranks))
        assert not (total[part != 0] != 0).any()  # ranks do not overlap
        total += part
        calls.add(model.calls)
    np.testing.assert_allclose(total, [score(s) for s in given])
    assert len(calls) == 1


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("pool")
    make_pool(path, heldout=25)
    return path


def task(name, seed):
    return ReferenceTask(name, {"report": [[s] for s in samples(9, seed) if len(s) > 1], "direction": [], "audit": []})


@pytest.mark.parametrize("limit, attribute", [(1000, "domain"), (1000, "quality"), (3, "domain")])
def test_heldout_losses_equal_a_plain_loop(directory, limit, attribute):
    pool, references = Pool.open(directory, "heldout"), [task("first", 1), task("second", 2)]
    result = HeldOut(FakeModel(), pool, references, OneRank(), 32, limit, 4, attribute).evaluate()
    texts = pool.tokens(np.arange(len(pool)))
    if limit == 1000:
        for code, label in enumerate(pool.labels(attribute)):
            mine = [t for t, c in zip(texts, pool.codes(attribute)) if c == code]
            targets = sum(len(t) - 1 for t in mine)
            if targets:
                assert result["heldout"][label] == pytest.approx(sum(map(score, mine)) / targets)
            else:
                assert label not in result["heldout"]
        for reference in references:
            windows = [w for example in reference.parts["report"] for w in example]
            expected = sum(map(score, windows)) / sum(len(w) - 1 for w in windows)
            assert result["references"][reference.name] == pytest.approx(expected)
    for kind in ("heldout", "references"):
        assert result[f"{kind}_mean"] == pytest.approx(np.mean(list(result[kind].values())))


def test_the_limit_takes_the_same_few_samples_of_every_label_every_time(directory):
    pool = Pool.open(directory, "heldout")
    runs = [HeldOut(FakeModel(), pool, [], OneRank(), 32, 3, 4) for _ in range(2)]
    assert runs[0].evaluate() == runs[1].evaluate()
    for label, _, part in [(name, kind, part) for kind, name, part in runs[0]._groups]:
        held = int((np.asarray(pool.codes("domain")) == pool.labels("domain").index(label)).sum())
        assert part.stop - part.start == min(3, held)
    assert runs[0].evaluate()["references_mean"] is None and runs[0].evaluate()["references"] == {}


def test_an_attribute_that_the_pool_lacks_is_named(directory):
    with pytest.raises(
        DataError, match=r"reported by 'mood'; the prepared data has only \['domain', 'likeness', 'quality', 'topic'\]"
    ):
        HeldOut(FakeModel(), Pool.open(directory, "heldout"), [], OneRank(), 32, 3, 4, "mood")


def test_further_attributes_are_reported_beside_domains(directory):
    pool = Pool.open(directory, "heldout")
    plain, quality = (HeldOut(FakeModel(), pool, [], OneRank(), 32, 3, 4, name).evaluate() for name in ("domain", "quality"))
    both = HeldOut(FakeModel(), pool, [], OneRank(), 32, 3, 4, further=["quality", "domain"]).evaluate()
    by = both.pop("heldout_by")
    assert both == plain and "heldout_by" not in plain
    assert by["quality"] == pytest.approx(quality["heldout"]) and by["domain"] == pytest.approx(plain["heldout"])
    with pytest.raises(DataError, match="reported by 'mood'"):
        HeldOut(FakeModel(), pool, [], OneRank(), 32, 3, 4, further=["mood"])
