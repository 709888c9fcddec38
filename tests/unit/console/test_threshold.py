"""The threshold search against the full sort of mads.console.decide, id for id, and against keys sorted in plain Python."""

import numpy as np
import pytest

import mads.console.threshold as threshold
from mads.console.decide import Candidates, select_gumbel, select_random, select_top_k
from mads.console.order import Draw, GumbelOrder, RandomOrder, TopKOrder
from mads.console.slices import FileColumn, LabelScore, PoolSlice, SliceScores, ValueScore
from mads.console.threshold import ordered_bits, select_by_threshold

NAMES = ["quality", "domain", "length", "topic"]
THETA = np.array([0.4, 0.3, 0.2, 0.1])
SELECTORS = ("top_k", "gumbel", "random")


def make_case(seed, n, ties="some", max_uses=2):
    """ids, lengths, uses and agents; ties: "all" equal scores, "some" label weights alone, "none" a continuous column too."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(10 * n, n, replace=False)).astype(np.int64) + (seed << 40)
    lengths, uses = rng.integers(1, 129, n).astype(np.int32), rng.integers(0, max_uses + 1, n).astype(np.uint16)
    weights = [np.full(k, 0.25) if ties == "all" else rng.normal(size=k) for k in (5, 7, 13)]
    codes = [rng.integers(0, k, n).astype(dtype) for k, dtype in ((5, np.uint8), (7, np.uint8), (13, np.uint16))]
    values = rng.normal(size=n).astype(np.float32) if ties == "none" else np.zeros(n, np.float32)
    agents = [LabelScore(name, c, w) for name, c, w in zip(("quality", "domain", "topic"), codes, weights)]
    agents.insert(2, ValueScore("length", values))
    return ids, lengths, uses, agents


def full_sort(selector, case, seed, round_, budget):
    ids, lengths, uses, agents = case
    candidates = Candidates(ids, lengths, uses)
    scores = np.stack([a.weights[a.codes] if isinstance(a, LabelScore) else a.values.astype(np.float64) for a in agents])
    if selector == "random":
        return select_random(candidates, seed, round_, budget)
    if selector == "gumbel":
        return select_gumbel(candidates, scores, THETA, NAMES, 0.5, seed, round_, budget)
    return select_top_k(candidates, scores, THETA, NAMES, 0.1, seed, round_, budget)


def searched(selector, case, seed, round_, budget, cut=slice(None), group=None, **sizes):
    """The decision by threshold from the part `cut` of the case on this rank."""
    ids, lengths, uses, agents = case
    order = {"random": RandomOrder(), "gumbel": GumbelOrder(0.5), "top_k": TopKOrder(0.1)}[selector]
    mine = [
        LabelScore(a.name, a.codes[cut], a.weights) if isinstance(a, LabelScore) else ValueScore(a.name, a.values[cut])
        for a in agents
    ]
    scores = SliceScores(mine, THETA) if order.scored else None
    pool = PoolSlice(ids[cut], lengths[cut], uses[cut])
    return select_by_threshold(order, pool, scores, Draw(seed, round_), budget, group, **sizes)


def assert_same(found, expected):
    assert found.ids.tolist() == expected.ids.tolist() and found.positions.tolist() == expected.positions.tolist()
    assert (found.tokens, found.reused, found.notes) == (expected.tokens, expected.reused, expected.notes)
    assert found.ids.dtype == expected.ids.dtype and found.positions.dtype == expected.positions.dtype


def check_equal_to_the_full_sort(selector, ties, gather_limit):
    for seed in range(4):
        n = int(np.random.default_rng(seed).integers(200, 2000))
        case = make_case(seed, n, ties, max_uses=seed % 3)
        everything = int(case[1].sum())
        for budget in (1, everything // 50, everything // 3, everything - 1, everything, everything + 1):
            expected = full_sort(selector, case, seed, seed, budget)
            piece = (113, 256, 997, 4000)[seed % 4]
            assert_same(searched(selector, case, seed, seed, budget, piece=piece, gather_limit=gather_limit), expected)


@pytest.mark.parametrize("gather_limit", [1, 40, 1 << 20])
@pytest.mark.parametrize("ties", ["all", "some", "none"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_x1_threshold_search_equals_the_full_sort(selector, ties, gather_limit):
    check_equal_to_the_full_sort(selector, ties, gather_limit)


@pytest.mark.parametrize("selector", SELECTORS)
def test_x1_every_budget_of_a_small_pool(selector):
    case = make_case(1, 25, "some")
    for budget in range(1, int(case[1].sum()) + 3, 7):
        assert_same(searched(selector, case, 1, 2, budget, piece=4, gather_limit=1), full_sort(selector, case, 1, 2, budget))


def test_use_counts_are_exhausted_in_turn():
    case = make_case(2, 400, "none", max_uses=0)
    case[2][:] = np.random.default_rng(2).choice([0, 3, 700, 65535], 400)
    for budget in range(100, int(case[1].sum()), 2003):
        assert_same(searched("gumbel", case, 1, 2, budget, piece=33, gather_limit=5), full_sort("gumbel", case, 1, 2, budget))


def test_ordered_bits_keep_the_order_of_floats():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=500) * 10.0 ** rng.integers(-300, 300, 500), [0.0, -0.0, 5e-324, -5e-324, 1e308]])
    bits = ordered_bits(values)
    by_bits = [value for _, value in sorted(zip(bits.tolist(), values.tolist()))]
    assert by_bits == sorted(values.tolist()) and (by_bits[0], by_bits[-1]) == (values.min(), values.max())
    assert ordered_bits(np.array([0.0]))[0] == ordered_bits(np.array([-0.0]))[0]
    assert bits.dtype == np.uint64 and len(np.unique(bits)) == len(np.unique(values))


def test_the_narrowing_reads_what_it_needs_and_gathers_no_more_than_the_limit(monkeypatch):
    case, gathered = make_case(3, 5000, "some"), []
    budget = int(case[1].sum()) // 4
    original = threshold.cover
    monkeypatch.setattr(threshold, "cover", lambda key, *rest: gathered.append(len(key)) or original(key, *rest))
    for selector in SELECTORS:
        searched(selector, case, 0, 0, budget, gather_limit=20)
    assert len(gathered) == 3 and max(gathered) <= 20


def test_columns_in_files_give_the_same(tmp_path):
    case = make_case(4, 1000, "none")
    expected = full_sort("gumbel", case, 1, 1, 9000)

    def stored(name, array):
        array.tofile(tmp_path / name)
        return FileColumn(tmp_path / name, array.dtype)

    ids, lengths, uses, agents = case
    agents = [
        LabelScore(a.name, stored(a.name, a.codes), a.weights)
        if isinstance(a, LabelScore)
        else ValueScore(a.name, stored(a.name, a.values))
        for a in agents
    ]
    pool = PoolSlice(stored("ids", ids), stored("lengths", lengths), stored("uses", uses))
    found = select_by_threshold(GumbelOrder(0.5), pool, SliceScores(agents, THETA), Draw(1, 1), 9000, piece=77, gather_limit=9)
    assert_same(found, expected)
    with pytest.raises(ValueError, match="8000 bytes, which is no whole number"):
        FileColumn(tmp_path / "ids", "V3")
    with pytest.raises(ValueError, match="contiguous"):
        pool.ids[::2]


def test_label_columns_with_too_many_joint_cells_are_added_one_by_one():
    rng = np.random.default_rng(0)
    agents = [LabelScore(str(i), rng.integers(0, 300, 50).astype(np.uint16), rng.normal(size=300)) for i in range(3)]
    expected = [0.0 + 0.5 * a + 0.3 * b + 0.2 * c for a, b, c in zip(*(x.weights[x.codes].tolist() for x in agents))]
    assert SliceScores(agents, np.array([0.5, 0.3, 0.2])).total(slice(0, 50)).tolist() == expected


def _spoil(case, what):
    ids, lengths, uses, agents = case
    if what == "order":
        ids[600] = ids[599]
    elif what == "length":
        lengths[[5, 700]] = 0
    elif what == "code":
        agents[1].codes[[3, 4, 900]] = 7
    elif what == "value":
        agents[2].values[[1, 999]] = np.nan, np.inf
    elif what == "uses":
        case = (ids, lengths, uses.astype(np.int64) * 70000, agents)
    return case


@pytest.mark.parametrize(
    "what, message",
    [
        ("order", "strictly ascending over all ranks; 1 of 1000"),
        ("length", "; 2 and 0 of 1000"),
        ("uses", "use counts in 0..65535; 0 and "),
        ("code", "agent 'domain' cannot score 3 of 1000"),
        ("value", "agent 'length' cannot score 2 of 1000"),
    ],
)
def test_bad_input_is_named_and_counted(what, message):
    case = _spoil(make_case(5, 1000), what)
    with pytest.raises(ValueError, match=message):
        searched("top_k", case, 0, 0, 100, piece=300)


def test_wrong_arguments_are_refused():
    case = make_case(6, 10)
    with pytest.raises(ValueError, match="token budget is 0"):
        searched("random", case, 0, 0, 0)
    with pytest.raises(ValueError, match="piece=0"):
        searched("random", case, 0, 0, 5, piece=0)
    with pytest.raises(ValueError, match="holds no sample"):
        searched("random", case, 0, 0, 5, cut=slice(0, 0))
    with pytest.raises(ValueError, match="TopKOrder needs scores"):
        select_by_threshold(TopKOrder(0.1), PoolSlice(*case[:3]), None, Draw(0, 0), 5)
    with pytest.raises(ValueError, match="10 ids, 9 lengths"):
        PoolSlice(case[0], case[1][:9], case[2])
    with pytest.raises(ValueError, match="finite weight"):
        LabelScore("a", np.zeros(3, np.uint8), np.array([np.nan]))
    with pytest.raises(ValueError, match="theta has 4 weights for 1 agents"):
        SliceScores(case[3][:1], THETA)
