"""Bounds, strata, limits, counts and shards against plain Python loops that know nothing of sorting arrays or of searching."""

import numpy as np
import pytest
from fake_pool import OneRank, random_pool
from test_threshold import KINDS, assert_same, full_sort, joint, make_case, make_plan, parts_of, searched, total_of

from mads.console.choose import choose
from mads.console.decide import Bounds, Candidates, Plan, Strata, decide
from mads.console.order import Draw, GumbelOrder, HashOrder, RandomOrder, TopKOrder, words_of
from mads.console.recipe import Limits, Recipe
from mads.console.shards import ROW_BITS, select_shards
from mads.data.schema import SHARD_SHIFT
from mads.noise import hash64, uniform


def naive_order(plan, case):
    """Eligible rows in the plan's order, by Python's sort of tuples."""
    total = total_of(case) if plan.order.scored else None
    bounds = (total.min(), total.max()) if plan.order.scored else None
    words = words_of(plan.order, plan.draw, case["ids"], case["uses"], total, bounds).tolist()
    ties = hash64(plan.draw.seed, "decide/ties", plan.draw.round, case["ids"]).tolist()
    eligible = [i for i in range(len(words)) if plan.max_uses is None or case["uses"][i] < plan.max_uses]
    return sorted(eligible, key=lambda i: (words[i], ties[i]))


def naive(plan, cells, case):
    """Rows chosen, as a set, one sample at a time."""
    order = naive_order(plan, case)
    size = [1 if plan.by_count else int(n) for n in case["lengths"]]
    chosen, covered = [], 0
    if plan.split is None:
        for i in order:
            if covered >= plan.budget:
                break
            chosen.append(i)
            covered += size[i]
    elif isinstance(plan.split, Bounds):
        tokens, taken = [0] * len(plan.split.labels), set()
        least = [int(np.ceil(s * plan.budget)) for s in plan.split.least]
        most = [int(np.ceil(s * plan.budget)) if s < 1 else float("inf") for s in plan.split.most]
        for i in order:  # the minima
            if tokens[cells[i]] < least[cells[i]]:
                taken.add(i)
                tokens[cells[i]] += size[i]
        for i in order:  # the rest
            if sum(tokens) >= plan.budget:
                break
            if i not in taken and tokens[cells[i]] < most[cells[i]]:
                taken.add(i)
                tokens[cells[i]] += size[i]
        chosen = list(taken)
    else:
        queues = {}
        for i in order:
            queues.setdefault(int(cells[i]), []).append(i)
        held = {c: sum(size[i] for i in q) for c, q in queues.items()}
        share = dict.fromkeys(queues, 1 / len(queues))
        if plan.split.shares == "natural":
            share = {c: held[c] / sum(held.values()) for c in queues}
        start = uniform(plan.draw.seed, "decide/start", plan.draw.round, np.arange(plan.split.cells))
        tokens = dict.fromkeys(queues, 0)
        while covered < plan.budget and any(queues.values()):  # the sample that is due first, again and again
            c = min((c for c in queues if queues[c]), key=lambda c: (tokens[c] + start[c] * size[queues[c][0]]) / share[c])
            i = queues[c].pop(0)
            chosen.append(i)
            tokens[c] += size[i]
            covered += size[i]
    return set(chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_x1_full_sort_and_threshold_equal_a_loop_over_single_samples(kind):
    for seed in range(12):
        n = int(np.random.default_rng(seed).integers(20, 250))
        case = make_case(seed, n, ("all", "some", "none")[seed % 3], max_uses=seed % 4)
        rest = ({}, {"max_uses": 1 + seed % 2}, {"by_count": True})[seed % 3]
        everything = n if "by_count" in rest else int(case["lengths"].sum())
        for budget in {1, everything // 20 + 1, everything // 3, everything + 1}:
            plan, attributes = make_plan(kind, seed, seed + 1, budget, **rest)
            expected = naive(plan, joint(case, attributes), case)
            decision = full_sort(plan, attributes, case)
            assert set(decision.positions.tolist()) == expected and len(decision.positions) == len(expected)
            assert_same(searched(plan, attributes, case, piece=31, gather_limit=3), decision)


def test_bounds_bind_and_notes_name_what_cannot_be_held():
    case = make_case(0, 2000, "none", max_uses=0)
    case["codes"]["domain"] = np.where(np.arange(2000) < 30, 1, 2 * (np.arange(2000) % 2)).astype(np.uint8)
    held = np.bincount(case["codes"]["domain"], weights=case["lengths"], minlength=3)
    bounds = Bounds(["a", "b", "c"], np.array([0.0, 0.5, 0.2]), np.array([1.0, 1.0, 0.2]))
    plan = Plan(GumbelOrder(0.5), Draw(0, 0), 40000, bounds)
    decision = full_sort(plan, ("domain",), case)
    got = np.bincount(case["codes"]["domain"][decision.positions], weights=case["lengths"][decision.positions], minlength=3)
    assert got[1] == held[1] and 8000 <= got[2] < 8128 and 40000 <= decision.tokens < 40128
    assert decision.notes == (f"label 'b' ran short: {int(held[1])} tokens for a minimum of 20000",)
    capped = Plan(GumbelOrder(0.5), Draw(0, 0), 40000, Bounds(["a", "b", "c"], np.zeros(3), np.array([0.1, 0.1, 0.2])))
    decision = full_sort(capped, ("domain",), case)
    assert decision.tokens < 20000 and "for a budget of 40000 tokens" in decision.notes[0]


def test_stratified_quotas_are_met_to_within_one_sample_by_the_search():
    case = make_case(4, 3000, max_uses=0)
    shares = np.random.default_rng(3).dirichlet(np.ones(13))
    held = np.bincount(case["codes"]["topic"], weights=case["lengths"], minlength=13)
    shares[held == 0] = 0
    plan = Plan(HashOrder(), Draw(1, 1), 20000, Strata(13, str, shares))
    decision = searched(plan, ("topic",), case, piece=99, gather_limit=1)
    got = np.bincount(case["codes"]["topic"][decision.positions], weights=case["lengths"][decision.positions], minlength=13)
    full = np.isclose(got, held)
    level = ((20000 - got[full].sum()) * shares / shares[~full].sum())[~full]
    assert np.abs(got[~full] - level).max() <= 2 * 128 and 20000 <= decision.tokens < 20128
    assert len(decision.notes) == int((held < np.floor(20000 * shares / shares.sum())).sum())


def test_max_uses_leaves_samples_out_and_says_so():
    case = make_case(1, 300, max_uses=2)
    plan, _ = make_plan("random", 0, 0, 10**9, max_uses=2)
    decision, eligible = full_sort(plan, (), case), case["uses"] < 2
    assert sorted(decision.positions.tolist()) == np.flatnonzero(eligible).tolist()
    left_out = int((~eligible).sum())
    assert f"{left_out} that were used 2 times or more are left out" in decision.notes[0]
    with pytest.raises(ValueError, match=r"all 300 were trained on selection.max_uses=1 times or more; raise it, or add data"):
        candidates = Candidates(case["ids"], case["lengths"], np.ones(300, int))
        decide(Plan(RandomOrder(), Draw(0, 0), 5, max_uses=1), candidates)


# ---------------------------------------------------------------- whole shards


def shard_case(seed, shards=12):
    case = make_case(seed, int(np.random.default_rng(seed).integers(60, 400)), ("some", "none")[seed % 2], max_uses=3)
    rng = np.random.default_rng(seed)
    shard = np.sort(rng.integers(0, shards, len(case["ids"])))
    case["ids"] = (shard.astype(np.int64) << ROW_BITS) + np.arange(len(shard)) - np.searchsorted(shard, shard)
    case["uses"][shard == shard[0]] = 3
    return case, shard


@pytest.mark.parametrize("order", [RandomOrder(), TopKOrder(0.1), GumbelOrder(0.5)], ids=lambda o: type(o).__name__)
def test_x1_whole_shards_equal_a_loop_over_shards(order):
    assert ROW_BITS == SHARD_SHIFT
    for seed in range(8):
        case, shard = shard_case(seed)
        total, tokens = total_of(case), int(case["lengths"].sum())
        for budget in (1, tokens // 3, tokens + 1):
            plan = Plan(order, Draw(seed, 2), budget, max_uses=(None, 3)[seed % 2])
            names, values = sorted(set(shard.tolist())), {}
            step = (total.max() - total.min()) / 2.0**32
            for s in names:
                steps = sum(round((float(x) - total.min()) / step) for x in total[shard == s]) if order.scored else 0
                values[s] = total.min() + steps / int((shard == s).sum()) * step
            uses = {s: int(case["uses"][shard == s].sum()) // int((shard == s).sum()) for s in names}
            ids = np.array(names, np.int64) << ROW_BITS
            scores = np.array([values[s] for s in names]) if order.scored else None
            bounds = (scores.min(), scores.max()) if order.scored else None
            words = words_of(order, plan.draw, ids, np.array([uses[s] for s in names]), scores, bounds)
            ties = hash64(seed, "decide/ties", 2, ids)
            taken, covered = [], 0
            for k in sorted(range(len(names)), key=lambda k: (words[k], ties[k])):
                if covered < budget and (plan.max_uses is None or uses[names[k]] < plan.max_uses):
                    taken.append(names[k])
                    covered += int(case["lengths"][shard == names[k]].sum())
            place = dict(zip(names, hash64(seed, "decide/order", 2, ids).tolist()))
            expected = [i for s in sorted(taken, key=place.get) for i in np.flatnonzero(shard == s).tolist()]
            pool, _, parts = parts_of(case, (), slice(None), order.scored)
            decision = select_shards(plan, pool, parts, None, 37, lambda line: None)
            assert decision.positions.tolist() == expected and decision.tokens == covered
            assert decision.ids.tolist() == case["ids"][expected].tolist()
            assert decision.reused == int((case["uses"][expected] > 0).sum())


# ---------------------------------------------------------------- what a console asks for


def _choose(recipe=None, budget=3000, **limits):
    pool = random_pool(n=300)
    recipe = recipe or Recipe(RandomOrder())
    uses = np.zeros(300, np.uint16)
    return choose(recipe, Limits(**limits), Draw(0, 0), budget, pool, [], np.zeros(0), uses, OneRank(), 64, lambda line: None)


def test_x5_limits_that_cannot_hold_are_named():
    with pytest.raises(ValueError, match="names .'elsewhere'.; the labels are .'domain0'"):
        _choose(bounds={"domain": {"elsewhere": [0, 1]}})
    with pytest.raises(ValueError, match="hold for one attribute, got .'domain', 'topic'"):
        Limits(bounds={"domain": {}, "topic": {}})
    with pytest.raises(ValueError, match="not for whole shards"):
        Limits(bounds={"domain": {}}, unit="shard")
    with pytest.raises(ValueError, match="exchange='post'"):
        Limits(exchange="post")
    with pytest.raises(ValueError, match="budget is 0"):
        _choose(budget=0)
    joint_of_all = Recipe(HashOrder(), ("quality", "domain", "topic") * 4)
    with pytest.raises(ValueError, match="joint cells, at most 16777216"):
        _choose(joint_of_all)


def check_parts_of_natural_shares(part):
    """A number as bounds: each label's least is that part of its share of the pool's tokens, none has a greatest."""
    pool, codes = random_pool(n=300), np.asarray(random_pool(n=300).codes("domain"))
    lengths = np.asarray(pool.lengths)
    natural = {label: lengths[codes == j].sum() / lengths.sum() for j, label in enumerate(pool.labels("domain"))}
    decision = _choose(bounds={"domain": part})
    spelled = _choose(bounds={"domain": {label: [part * share, 1.0] for label, share in natural.items()}})
    assert decision.ids.tolist() == spelled.ids.tolist() != _choose().ids.tolist()
    for j, share in enumerate(natural.values()):
        assert lengths[decision.positions][codes[decision.positions] == j].sum() >= part * share * 3000


def test_a_part_of_natural_shares_holds_for_every_label():
    check_parts_of_natural_shares(0.9)


def test_names_of_joint_cells_are_those_of_their_labels():
    decision = _choose(Recipe(HashOrder(), ("quality", "domain"), "uniform"), budget=19000)
    assert any("label 'quality" in note and "/domain" in note for note in decision.notes)
