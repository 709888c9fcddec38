"""The pure decision against a naive full sort in plain Python, and its defined outcomes."""

import numpy as np
import pytest
from decide_support import select_gumbel, select_random, select_stratified, select_top_k

from mads.console.decide import Candidates, combine
from mads.noise import gumbel, hash64

THETA = np.array([0.5, 0.3, 0.2])


def _candidates(seed=0, n=300, max_uses=2):
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(10 * n, n, replace=False)).astype(np.int64) + (seed << 40)
    return Candidates(ids, rng.integers(4, 129, n).astype(np.int32), rng.integers(0, max_uses + 1, n).astype(np.uint16))


def _label_scores(seed, n):
    """Scores as label agents give them: few distinct values, so many ties."""
    rng = np.random.default_rng(seed + 1000)
    return np.stack([rng.normal(size=k)[rng.integers(0, k, n)] for k in (3, 2, 4)])


def _naive(candidates, rows, seed, round_, budget):
    """rows: one sort key tuple per candidate, ascending. Take until covered, then training order by hash."""
    ties = hash64(seed, "decide/ties", round_, candidates.ids).tolist()
    order = sorted(range(len(rows)), key=lambda i: (*rows[i], ties[i]))
    taken, tokens = [], 0
    for i in order:
        if tokens >= budget:
            break
        taken.append(i)
        tokens += int(candidates.lengths[i])
    train = hash64(seed, "decide/order", round_, candidates.ids).tolist()
    return [int(candidates.ids[i]) for i in sorted(taken, key=lambda i: train[i])], tokens


@pytest.mark.parametrize("seed", range(12))
def test_x1_top_k_equals_a_naive_full_sort(seed):
    c, budget = _candidates(seed), [1, 500, 4000, 15000][seed % 4]
    scores = _label_scores(seed, 300)
    decision = select_top_k(c, scores, THETA, 0.1, seed, seed, budget)
    total = [0.5 * a + 0.3 * b + 0.2 * d for a, b, d in scores.T.tolist()]
    low, high = min(total), max(total)
    rows = [(-((s - low) / (high - low)) / (1 + 0.1 * int(u)),) for s, u in zip(total, c.uses)]
    ids, tokens = _naive(c, rows, seed, seed, budget)
    assert decision.ids.tolist() == ids and decision.tokens == tokens
    assert decision.ids.dtype == np.int64 and (c.ids[decision.positions] == decision.ids).all()


@pytest.mark.parametrize("seed", range(12))
def test_x1_gumbel_equals_a_naive_full_sort(seed):
    c, budget = _candidates(seed), [1, 500, 8000, 15000][seed % 4]
    scores = _label_scores(seed, 300)
    decision = select_gumbel(c, scores, THETA, 0.5, seed, seed, budget)
    key = THETA @ scores / 0.5 + gumbel(seed, "decide/noise", seed, c.ids)
    ids, tokens = _naive(c, [(int(u), -k) for u, k in zip(c.uses, key)], seed, seed, budget)
    assert decision.ids.tolist() == ids and decision.tokens == tokens


def test_the_naive_sort_would_notice_a_wrong_tie():
    """Ties decide in these cases: without them the two tests above could not fail for ties by position."""
    c, scores = _candidates(3), _label_scores(3, 300)
    total = combine(scores, THETA)
    assert len(np.unique(total)) <= 24
    by_position = set(c.ids[np.lexsort((np.arange(300), -total))[:100]].tolist())
    tokens = int(c.lengths[np.lexsort((np.arange(300), -total))[:100]].sum())
    chosen = select_top_k(c, scores, THETA, 0.0, 3, 3, tokens).ids.tolist()
    assert set(chosen) != by_position


def test_x6_uniform_scores_select_exactly_what_random_selects():
    c = _candidates(5, n=2000)
    for scores in (np.zeros((3, 2000)), np.full((3, 2000), 0.1), np.repeat([[0.3], [7.0], [-1.0]], 2000, axis=1)):
        mads = select_gumbel(c, scores, THETA, 0.5, 7, 3, 20000)
        np.testing.assert_array_equal(mads.ids, select_random(c, 7, 3, 20000).ids)


def test_random_inclusion_is_uniform():
    """Chi-square over ids: 400 rounds choose about a quarter of 64 samples of equal length."""
    n, rounds = 64, 400
    c = Candidates(np.arange(n, dtype=np.int64), np.full(n, 10), np.zeros(n, np.int64))
    counts = np.zeros(n)
    for round_ in range(rounds):
        counts[select_random(c, 11, round_, 160).positions] += 1
    expected = rounds / 4
    statistic = ((counts - expected) ** 2 / (expected * 0.75)).sum()  # mean n - 1, variance about 2 n
    assert abs(statistic - (n - 1)) < 5 * np.sqrt(2 * n)


def test_gumbel_prefers_high_scores_in_proportion():
    """One draw of one sample at a time: P(i) = exp(S_i / T) / sum (Kool et al. 2019)."""
    c = Candidates(np.arange(4, dtype=np.int64), np.full(4, 10), np.zeros(4, np.int64))
    scores = np.array([[0.0, 1.0, 2.0, 3.0]])
    counts = np.zeros(4)
    for round_ in range(4000):
        counts[select_gumbel(c, scores, np.ones(1), 0.7, 3, round_, 1).positions] += 1
    expected = 4000 * np.exp(scores[0] / 0.7) / np.exp(scores[0] / 0.7).sum()
    assert ((counts - expected) ** 2 / expected).sum() < 20  # chi-square, 3 degrees of freedom


def test_training_order_is_not_score_order_and_changes_with_the_round():
    c, scores = _candidates(1, n=1000, max_uses=0), np.random.default_rng(0).normal(size=(3, 1000))
    decision = select_top_k(c, scores, THETA, 0.1, 1, 1, 30000)
    rank = np.argsort(np.argsort(-combine(scores, THETA)[decision.positions]))
    assert abs(np.corrcoef(rank, np.arange(len(rank)))[0, 1]) < 0.2
    other = select_random(c, 1, 2, 30000)
    assert other.ids.tolist() != select_random(c, 1, 1, 30000).ids.tolist()
    assert select_random(c, 1, 2, 30000).ids.tolist() == other.ids.tolist()


def test_use_decay_never_raises_a_sample():
    """Negative raw scores: a used sample must not overtake its unused twin (dividing the raw score would let it)."""
    c = Candidates(np.arange(4, dtype=np.int64), np.full(4, 10), np.array([0, 5, 0, 5]))
    scores = np.array([[-3.0, -3.0, -1.0, -1.0]])
    assert set(select_top_k(c, scores, np.ones(1), 0.1, 0, 0, 10).positions.tolist()) == {2}
    assert set(select_top_k(c, scores, np.ones(1), 0.1, 0, 0, 20).positions.tolist()) == {2, 3}
    equal = select_top_k(c, np.full((1, 4), -3.0), np.ones(1), 0.1, 0, 0, 20)
    assert set(equal.positions.tolist()) == {0, 2}


def test_consume_once_comes_before_the_score():
    c = Candidates(np.arange(6, dtype=np.int64), np.full(6, 10), np.array([1, 0, 2, 0, 1, 0]))
    scores = np.array([[9.0, 0.0, 99.0, 0.0, 9.0, 0.0]])
    fresh = select_gumbel(c, scores, np.ones(1), 0.1, 0, 0, 30)
    assert set(fresh.positions.tolist()) == {1, 3, 5} and fresh.reused == 0 and fresh.notes == ()
    short = select_gumbel(c, scores, np.ones(1), 0.1, 0, 0, 50)
    assert set(short.positions.tolist()) == {0, 1, 3, 4, 5} and short.reused == 2
    assert short.notes == ("2 of 5 chosen samples were trained on before",)


def test_x5_fewer_candidates_than_asked_takes_all_and_says_so():
    c = _candidates(2, n=20, max_uses=0)
    codes, labels = np.arange(20) % 2, ["a", "b"]
    total = int(c.lengths.sum())
    for decision in (
        select_random(c, 0, 0, 10**9),
        select_top_k(c, np.ones((1, 20)), np.ones(1), 0.1, 0, 0, 10**9),
        select_gumbel(c, np.ones((1, 20)), np.ones(1), 0.5, 0, 0, 10**9),
        select_stratified(c, codes, labels, np.ones(2), 0, 0, 10**9),
    ):
        assert sorted(decision.ids.tolist()) == c.ids.tolist() and decision.tokens == total
        assert any(f"{total} tokens for a budget of 1000000000" in note for note in decision.notes)


def test_x5_bad_input_is_named():
    with pytest.raises(ValueError, match="no candidates"):
        Candidates(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="strictly ascending"):
        Candidates(np.array([1, 1]), np.ones(2), np.zeros(2))
    with pytest.raises(ValueError, match="2 ids, 1 lengths"):
        Candidates(np.array([1, 2]), np.ones(1), np.zeros(2))
    c = _candidates(0, n=10)
    for select in (
        lambda: select_random(c, 0, 0, 0),
        lambda: select_gumbel(c, np.zeros((3, 10)), THETA, 0.5, 0, 0, 0),
        lambda: select_stratified(c, np.zeros(10, int), ["a"], np.ones(1), 0, 0, -3),
    ):
        with pytest.raises(ValueError, match="token budget is"):
            select()


# ---------------------------------------------------------------- stratified


def _tokens_by_label(candidates, decision, codes, labels):
    return np.bincount(codes[decision.positions], weights=candidates.lengths[decision.positions], minlength=labels)


@pytest.mark.parametrize("shares", [[1.0, 1.0, 1.0], [0.6, 0.3, 0.1]])
def test_stratified_meets_every_quota_to_within_a_sample(shares):
    c = _candidates(4, n=3000, max_uses=0)
    codes = np.random.default_rng(4).choice(3, 3000, p=[0.5, 0.3, 0.2])
    decision = select_stratified(c, codes, "abc", np.array(shares), 4, 0, 30000)
    asked = 30000 * np.array(shares) / sum(shares)
    assert np.abs(_tokens_by_label(c, decision, codes, 3) - asked).max() <= 128
    assert 30000 <= decision.tokens < 30000 + 128 and decision.notes == ()


def test_labels_with_quotas_below_one_sample_get_their_due_on_average():
    """500 labels, about 60 samples a round: the tokens of small and large labels over many rounds keep their shares."""
    c = _candidates(8, n=2000, max_uses=0)
    codes = np.minimum(np.random.default_rng(8).geometric(0.01, 2000) - 1, 499)
    held = np.bincount(codes, weights=c.lengths, minlength=500)
    got = np.zeros(500)
    for round_ in range(300):
        got += _tokens_by_label(c, select_stratified(c, codes, range(500), held, 8, round_, 4000), codes, 500)
    for part in (held < np.quantile(held, 0.5), held > np.quantile(held, 0.9)):
        assert got[part].sum() / got.sum() == pytest.approx(held[part].sum() / held.sum(), rel=0.05)


def test_a_label_that_runs_short_gives_its_quota_to_the_others():
    c = _candidates(4, n=3000, max_uses=0)
    codes = np.r_[np.zeros(10, int), np.arange(2990) % 2 + 1]
    decision = select_stratified(c, codes, "abc", np.array([0.4, 0.4, 0.2]), 4, 0, 30000)
    got, held = _tokens_by_label(c, decision, codes, 3), int(c.lengths[:10].sum())
    assert got[0] == held and len(decision.notes) == 1
    assert f"'a' ran short: {held} tokens for a quota of 12000" in decision.notes[0]
    assert got[1] == pytest.approx(2 * got[2], abs=256) and 30000 <= decision.tokens < 30128


def test_stratified_takes_unused_samples_first_and_skips_labels_without_a_share():
    c = _candidates(6, n=1000, max_uses=1)
    codes = np.arange(1000) % 4
    decision = select_stratified(c, codes, "abcd", np.array([1.0, 1.0, 0.0, 1.0]), 6, 0, 12000)
    assert decision.reused == 0 and 2 not in codes[decision.positions]
    more = select_stratified(c, codes, "abcd", np.array([1.0, 1.0, 0.0, 1.0]), 6, 0, 40000)
    fresh = (c.uses == 0) & (codes != 2)
    assert more.reused > 0 and np.isin(np.flatnonzero(fresh), more.positions).all()
    with pytest.raises(ValueError, match="not all 0"):
        select_stratified(c, codes, "abcd", np.zeros(4), 6, 0, 100)
    with pytest.raises(ValueError, match="no candidate has a label"):
        select_stratified(c, np.zeros(1000, int), "ab", np.array([0.0, 1.0]), 6, 0, 100)
