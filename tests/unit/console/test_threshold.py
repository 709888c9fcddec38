"""The threshold search against the full sort of mads.console.decide, id for id."""

from dataclasses import replace

import numpy as np
import pytest

import mads.console.threshold as threshold
from mads.console.decide import Bounds, Candidates, Plan, Strata, combine, decide
from mads.console.order import Draw, GumbelOrder, HashOrder, RandomOrder, TopKOrder, ordered_bits
from mads.console.slices import CallScore, Cells, FileColumn, LabelScore, PoolSlice, SliceScores, Window
from mads.console.threshold import Search, select_by_threshold, settled_on_rank_0, water_level

SIZES = {"quality": 5, "domain": 7, "topic": 13}
THETA = np.array([0.4, 0.3, 0.2, 0.1])
ORDERS = {"top_k": TopKOrder(0.1), "gumbel": GumbelOrder(0.5), "random": RandomOrder()}
SPLITS = ("natural", "uniform", "joint", "bounds", "tight")
KINDS = (*ORDERS, *SPLITS, "bounded top_k")


def make_case(seed, n, ties="some", max_uses=2):
    """ids, lengths, uses, label codes, weights and values; ties: "all" equal scores, "some" label weights alone, "none" a
    continuous column too."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(10 * n, n, replace=False)).astype(np.int64) + (seed << 40)
    lengths, uses = rng.integers(1, 129, n).astype(np.int32), rng.integers(0, max_uses + 1, n).astype(np.uint16)
    weights = {a: np.full(k, 0.25) if ties == "all" else rng.normal(size=k) for a, k in SIZES.items()}
    dtypes = {"quality": np.uint8, "domain": np.uint8, "topic": np.uint16}
    codes = {}
    for attribute, k in SIZES.items():  # some labels are rare or absent
        shares = rng.dirichlet(np.full(k, 0.5))
        codes[attribute] = rng.choice(k, n, p=shares).astype(dtypes[attribute])
    values = rng.normal(size=n) if ties == "none" else np.zeros(n)
    return {"ids": ids, "lengths": lengths, "uses": uses, "codes": codes, "weights": weights, "values": values}


def make_plan(kind, seed, round_, budget, **rest):
    """(plan, attributes of its cells)."""
    draw, rng = Draw(seed, round_), np.random.default_rng(seed + 17)
    if kind in ORDERS:
        return Plan(ORDERS[kind], draw, budget, **rest), ()
    if kind in ("natural", "uniform"):
        return Plan(HashOrder(), draw, budget, Strata(13, str, kind), **rest), ("topic",)
    if kind == "joint":
        return Plan(HashOrder(), draw, budget, Strata(5 * 7 * 13, str, "natural"), **rest), tuple(SIZES)
    least, most = rng.dirichlet(np.ones(7)) * 0.9, np.ones(7)
    if kind == "tight":
        most = least + rng.random(7) * 0.2 * (rng.random(7) < 0.7)
    else:
        least[rng.random(7) < 0.5] = 0
        most[:3] = least[:3] + rng.random(3) * 0.2
    order = TopKOrder(0.1) if kind == "bounded top_k" else GumbelOrder(0.5)
    return Plan(order, draw, budget, Bounds([f"d{j}" for j in range(7)], least, np.minimum(most, 1)), **rest), ("domain",)


def joint(case, attributes):
    cells = np.zeros(len(case["ids"]), np.int64)
    for attribute in attributes:
        cells = cells * SIZES[attribute] + case["codes"][attribute]
    return cells


def total_of(case):
    rows = [case["weights"][a][case["codes"][a]] for a in ("quality", "domain")]
    return combine([*rows, case["values"], case["weights"]["topic"][case["codes"]["topic"]]], THETA)


def full_sort(plan, attributes, case):
    candidates = Candidates(case["ids"], case["lengths"], case["uses"])
    return decide(
        plan, candidates, total_of(case) if plan.order.scored else None, joint(case, attributes) if attributes else None
    )


def parts_of(case, attributes, cut, scored):
    """(slice, cells, scores) of the part `cut` of a case."""
    scores = cells = None
    if scored:
        agents = [LabelScore(a, case["codes"][a][cut], w) for a, w in case["weights"].items()]
        values = case["values"][cut]
        agents.insert(2, CallScore("length", lambda where: values[where]))
        scores = SliceScores(agents, THETA)
    if attributes:
        cells = Cells(attributes, [case["codes"][a][cut] for a in attributes], [SIZES[a] for a in attributes])
    return PoolSlice(case["ids"][cut], case["lengths"][cut], case["uses"][cut]), cells, scores


def searched(plan, attributes, case, cut=slice(None), group=None, **sizes):
    """The decision by threshold from the part `cut` of the case on this rank."""
    return select_by_threshold(plan, *parts_of(case, attributes, cut, plan.order.scored), group, **sizes)


def assert_same(found, expected):
    assert found.ids.tolist() == expected.ids.tolist() and found.positions.tolist() == expected.positions.tolist()
    assert (found.tokens, found.reused, found.notes) == (expected.tokens, expected.reused, expected.notes)
    assert found.ids.dtype == expected.ids.dtype and found.positions.dtype == expected.positions.dtype


def check_equal_to_the_full_sort(kind, ties, gather_limit, seeds=3):
    for seed in range(seeds):
        n = int(np.random.default_rng(seed).integers(200, 1200))
        case = make_case(seed, n, ties, max_uses=seed % 3)
        everything = int(case["lengths"].sum())
        for i, budget in enumerate((1, everything // 50, everything // 3, everything // 2, everything, everything + 1)):
            rest = ({}, {"max_uses": 1}, {"by_count": True})[(i + seed) % 3]
            plan, attributes = make_plan(kind, seed, seed, budget // (65 if "by_count" in rest else 1) + 1, **rest)
            sizes = {"piece": (113, 256, 997, 4000)[seed % 4], "gather_limit": gather_limit}
            assert_same(searched(plan, attributes, case, **sizes), full_sort(plan, attributes, case))


@pytest.mark.parametrize("gather_limit", [1, 1 << 20])
@pytest.mark.parametrize("ties", ["all", "some", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_x1_threshold_search_equals_the_full_sort(kind, ties, gather_limit):
    check_equal_to_the_full_sort(kind, ties, gather_limit)


def test_what_rank_0_sorts_grows_with_the_pool():
    assert [settled_on_rank_0(n) for n in (1, 10**5, 10**6, 5 * 10**8)] == [1 << 14, 1 << 14, 62_500, 1 << 20]


@pytest.mark.parametrize("kind", ["gumbel", "natural", "bounds"])
def test_x1_the_default_of_what_rank_0_sorts_changes_no_decision(kind, monkeypatch):
    case, found = make_case(3, 20_000, "some"), []
    plan, attributes = make_plan(kind, 1, 2, int(case["lengths"].sum()) // 9)
    narrow = Search._narrow
    monkeypatch.setattr(Search, "_narrow", lambda self, *rest: found.append(self._limit) or narrow(self, *rest))
    assert_same(searched(plan, attributes, case), full_sort(plan, attributes, case))
    assert set(found) == {1 << 14}


@pytest.mark.parametrize("kind", KINDS)
def test_x1_every_budget_of_a_small_pool(kind):
    case = make_case(1, 20, "some")
    case["lengths"] = case["lengths"] % 12 + 1  # few tokens, so that every number of them is tried
    for budget in range(1, int(case["lengths"].sum()) + 3):
        plan, attributes = make_plan(kind, 1, 2, budget)
        assert_same(searched(plan, attributes, case, piece=4, gather_limit=1), full_sort(plan, attributes, case))


@pytest.mark.parametrize("kind", ["gumbel", "bounds", "natural"])
def test_use_counts_are_exhausted_in_turn(kind):
    case = make_case(2, 400, "none", max_uses=0)
    case["uses"][:] = np.random.default_rng(2).choice([0, 3, 700, 65535], 400)
    for budget in range(100, int(case["lengths"].sum()), 2003):
        plan, attributes = make_plan(kind, 1, 2, budget)
        assert_same(searched(plan, attributes, case, piece=33, gather_limit=5), full_sort(plan, attributes, case))


def test_ordered_bits_keep_the_order_of_floats():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=500) * 10.0 ** rng.integers(-300, 300, 500), [0.0, -0.0, 1e308, -1e308]])
    bits = ordered_bits(values)
    assert bits.dtype == np.int64 and bits.min() >= 0 and bits.max() < 1 << 47
    assert values[np.argsort(bits, kind="stable")].tolist() == np.sort(values, kind="stable").tolist()
    assert ordered_bits(np.array([0.0]))[0] == ordered_bits(np.array([-0.0]))[0] and len(np.unique(bits)) == len(
        np.unique(values)
    )
    near = np.array([1.0, 1 + 2.0**-36, 1 + 2.0**-35])
    assert np.diff(ordered_bits(near)).tolist() == [0, 1]  # keys that agree in 36 bits are equal
    assert np.diff(ordered_bits(-near)).tolist()[1] == -1


def test_what_is_open_is_no_more_than_the_limit(monkeypatch):
    case, gathered = make_case(3, 5000, "some"), []
    budget = int(case["lengths"].sum()) // 4
    original = threshold.cover
    monkeypatch.setattr(threshold, "cover", lambda words, *rest: gathered.append(len(words)) or original(words, *rest))
    for kind in (*ORDERS, "bounds"):
        searched(*make_plan(kind, 0, 0, budget), case, gather_limit=20)
    assert len(gathered) == 4 and max(gathered) <= 20


def test_water_level_fills_cells_in_proportion_until_they_are_full():
    held, shares = np.array([10, 100, 30]), np.array([0.5, 0.3, 0.2])
    for amount in (1, 15, 40, 60, 100, 139):
        level = water_level(held, shares, amount)
        assert np.minimum(held, level * shares).sum() == pytest.approx(amount)
    assert water_level(held, shares, 0) == 0 and water_level(held, shares, 140) == np.inf


def test_columns_in_files_give_the_same(tmp_path):
    case = make_case(4, 1000, "none")

    def stored(name, array):
        array.tofile(tmp_path / name)
        return FileColumn(tmp_path / name, array.dtype)

    on_disk = {key: stored(key, case[key]) for key in ("ids", "lengths", "uses", "values")}
    codes = {a: stored(a, c) for a, c in case["codes"].items()}
    agents = [LabelScore(a, codes[a], w) for a, w in case["weights"].items()]
    agents.insert(2, CallScore("length", lambda where: on_disk["values"][where]))
    pool = PoolSlice(on_disk["ids"], on_disk["lengths"], on_disk["uses"])
    for kind in ("gumbel", "bounds"):
        plan, attributes = make_plan(kind, 1, 1, 9000)
        cells = Cells(attributes, [codes[a] for a in attributes], [SIZES[a] for a in attributes]) if attributes else None
        found = select_by_threshold(plan, pool, cells, SliceScores(agents, THETA), piece=77, gather_limit=9)
        assert_same(found, full_sort(plan, attributes, case))
    with pytest.raises(ValueError, match="8000 bytes, which is no whole number"):
        FileColumn(tmp_path / "ids", "V3")
    with pytest.raises(ValueError, match="contiguous"):
        pool.ids[::2]


def test_a_window_is_a_part_of_a_column():
    window = Window(np.arange(10), 3, 8)
    assert len(window) == 5 and window[1:3].tolist() == [4, 5] and window[4:99].tolist() == [7] and window[5:].tolist() == []


def test_label_columns_with_too_many_joint_cells_are_added_one_by_one():
    rng = np.random.default_rng(0)
    agents = [LabelScore(str(i), rng.integers(0, 300, 50).astype(np.uint16), rng.normal(size=300)) for i in range(3)]
    expected = [0.0 + 0.5 * a + 0.3 * b + 0.2 * c for a, b, c in zip(*(x.weights[x.codes].tolist() for x in agents))]
    assert SliceScores(agents, np.array([0.5, 0.3, 0.2])).total(slice(0, 50)).tolist() == expected


def _spoil(case, what):
    if what == "order":
        case["ids"][600] = case["ids"][599]
    elif what == "length":
        case["lengths"][[5, 700]] = 0
    elif what == "code":
        case["codes"]["domain"][[3, 4, 900]] = 7
    elif what == "value":
        case["values"][[1, 999]] = np.nan, np.inf
    elif what == "uses":
        case["uses"] = case["uses"].astype(np.int64) * 70000
    elif what == "used":
        case["uses"] += 3
    return case


@pytest.mark.parametrize(
    "what, message",
    [
        ("order", "strictly ascending over all ranks; 1 of 1000"),
        ("length", "; 2 and 0 of 1000"),
        ("uses", "use counts in 0..65535; 0 and "),
        ("code", "agent 'domain' gave 3 of 1000 samples a score that is NaN"),
        ("value", "agent 'length' gave 2 of 1000 samples a score that is NaN"),
        ("used", "all 1000 were trained on selection.max_uses=3 times or more"),
    ],
)
def test_x5_bad_input_is_named_and_counted(what, message):
    plan, attributes = make_plan("top_k", 0, 0, 100, max_uses=3)
    with pytest.raises(ValueError, match=message):
        searched(plan, attributes, _spoil(make_case(5, 1000), what), piece=300)


def test_wrong_arguments_are_refused():
    case, (plan, _) = make_case(6, 10), make_plan("random", 0, 0, 5)
    with pytest.raises(ValueError, match="token budget is 0"):
        replace(plan, budget=0)
    with pytest.raises(ValueError, match="piece=0"):
        searched(plan, (), case, piece=0)
    with pytest.raises(ValueError, match="holds no sample"):
        searched(plan, (), case, cut=slice(0, 0))
    with pytest.raises(ValueError, match="TopKOrder needs scores"):
        select_by_threshold(replace(plan, order=TopKOrder(0.1)), parts_of(case, (), slice(None), False)[0])
    with pytest.raises(ValueError, match="10 ids, 9 lengths"):
        PoolSlice(case["ids"], case["lengths"][:9], case["uses"])
    with pytest.raises(ValueError, match="finite weight"):
        LabelScore("a", np.zeros(3, np.uint8), np.array([np.nan]))
    with pytest.raises(ValueError, match="theta has 4 weights for 1 agents"):
        SliceScores([LabelScore("a", np.zeros(3, np.uint8), np.ones(1))], THETA)
    with pytest.raises(ValueError, match="attribute 'domain' has code 7, but only 7 labels"):
        searched(*make_plan("bounds", 0, 0, 5), _spoil(make_case(5, 1000), "code"))
    with pytest.raises(ValueError, match=r"agent 'x' gave float32 \(2,\) for 3 samples"):
        CallScore("x", lambda where: np.zeros(2, np.float32)).score(slice(0, 3))
