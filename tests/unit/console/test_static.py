"""Selections without rewards, and the choices of a selection with them, against loops over single samples."""

import dataclasses

import numpy as np
import pytest
from fake_pool import FakePool, OneRank, random_pool
from static_support import BUDGET, COLUMN, CONFIGS, naive_rounds, positive_pool, static_rounds

from mads.agents.label import LabelAgent
from mads.config.schema import MadsSelectionConfig, MixSelectionConfig
from mads.console.choose import choose
from mads.console.column import Band, ColumnScore
from mads.console.console import Console
from mads.console.decide import Candidates, Plan, decide
from mads.console.order import Draw, ProportionalOrder
from mads.console.static import ColumnStrategy, MixStrategy
from mads.console.strategy import build_strategy
from mads.noise import gumbel

ROW_BITS = 40


def check_equal_to_loops(name, exchange):
    found = static_rounds(OneRank(), name, exchange)
    assert [set(ids) for ids, _ in found] == naive_rounds(name)
    assert len({frozenset(ids) for ids, _ in found}) > 3  # rounds differ: used samples wait


@pytest.mark.parametrize("exchange", ["gather", "threshold"])
@pytest.mark.parametrize("name", CONFIGS)
def test_decisions_equal_loops_over_single_samples(name, exchange):
    check_equal_to_loops(name, exchange)


def test_the_best_come_first_and_a_band_keeps_the_middle():
    pool = positive_pool()
    values, chosen = pool.values("value"), {}
    for name in ("top_k", "bottom_k", "band"):
        ids, _ = static_rounds(OneRank(), name, "gather", rounds=1)[0]
        chosen[name] = np.isin(pool.ids, ids)
    assert values[chosen["top_k"]].min() >= values[~chosen["top_k"]].max()
    assert values[chosen["bottom_k"]].max() <= values[~chosen["bottom_k"]].min()
    order = np.argsort(values, kind="stable")
    part = np.cumsum(pool.lengths[order]) / pool.lengths.sum()
    inside = values[order][(part >= 0.25) & (part <= 0.76)]
    assert inside.min() <= values[chosen["band"]].min() and values[chosen["band"]].max() <= inside.max()
    assert 0.8 < np.ptp(values[chosen["band"]]) / np.ptp(inside) <= 1  # all of it is chosen from, not its top


def test_samples_outside_of_a_band_are_never_taken_and_running_short_is_told():
    config = dataclasses.replace(CONFIGS["top of a band"], max_uses=1, band=[0.0, 0.1])
    for exchange in ("gather", "threshold"):
        pool = positive_pool()
        console = Console(OneRank(), pool, [], build_strategy(dataclasses.replace(config, exchange=exchange)), 0)
        ids, record = console.decide(None, np.zeros(len(pool), np.uint16), 10**9, 0, 0)
        assert 0 < len(ids) < 200 and record.notes[0].startswith(f"running short: {len(ids)} samples")
        uses = np.isin(pool.ids, ids).astype(np.uint16)
        with pytest.raises(ValueError, match="no sample can be chosen.*selection.max_uses=1.*widen the band"):
            console.decide(None, uses, BUDGET, 0, 0)


def test_the_ends_of_a_band_are_found_once_for_a_pool_and_anew_for_a_longer_one():
    pool, band = positive_pool(), Band("value", 0.25, 0.75)
    longer = FakePool(pool.ids, pool.lengths, {}, {"value": pool.values("value") + 100})
    ends = band.ends(pool)
    values = pool.values("value").copy()
    pool.values("value")[:] = 7  # not read again
    assert band.ends(pool) == ends
    pool.values("value")[:] = values
    np.testing.assert_allclose(band.ends(longer), np.array(ends) + 100)
    assert Band("value", 0.0, 1.0).ends(pool) == (-np.inf, np.inf)


def check_whole_shards(selector):
    """Shards by the mean of their samples' S, whole, until the budget is covered."""
    rng = np.random.default_rng(4)
    shard = np.sort(rng.integers(0, 9, 300))
    ids = (shard << ROW_BITS) + np.arange(300) - np.searchsorted(shard, shard)
    values = rng.lognormal(size=300).astype(np.float32)
    lengths = rng.integers(4, 99, 300)
    pool = FakePool(ids, lengths, {"domain": (np.zeros(300, np.uint16), ("all",))}, {"value": values})
    config = dataclasses.replace(COLUMN, selector=selector, unit="shard", temperature=0.5 if selector == "gumbel" else None)
    console = Console(OneRank(), pool, [], build_strategy(config), 3, piece=37)
    chosen, _ = console.decide(None, np.zeros(300, np.uint16), int(lengths.sum()) // 3, 0, 0)
    score = {"top_k": values, "gumbel": values / 0.5, "proportional": np.log(values.astype(float))}[selector]
    noise = 0 if selector == "top_k" else gumbel(3, "decide/noise", 0, np.arange(9) << ROW_BITS)
    means = np.array([score[shard == s].mean() for s in range(9)]) + noise
    expected, covered = [], 0
    for s in np.argsort(-means):
        if covered < lengths.sum() // 3:
            expected.append(s)
            covered += lengths[shard == s].sum()
    assert sorted(set((chosen >> ROW_BITS).tolist())) == sorted(expected) and len(chosen) == np.isin(shard, expected).sum()


@pytest.mark.parametrize("selector", ["top_k", "gumbel", "proportional"])
def test_whole_shards_are_judged_by_their_mean(selector):
    check_whole_shards(selector)


def check_mix_is_by_name(exchange="gather"):
    """Labels are found by name, in whatever order they are given; those not named get nothing."""
    pool = random_pool(n=1500)
    config = MixSelectionConfig(name="mix", attribute="quality", shares={"quality3": 6, "quality0": 2}, exchange=exchange)
    _, record = Console(OneRank(), pool, [], build_strategy(config), 0).decide(None, np.zeros(1500, np.uint16), BUDGET, 0, 0)
    share = {label.label: label.chosen_share for label in record.labels["quality"]}
    assert abs(share["quality3"] - 0.75) < 129 / BUDGET and abs(share["quality0"] - 0.25) < 129 / BUDGET
    assert share["quality1"] == share["quality2"] == share["quality4"] == 0


@pytest.mark.parametrize("exchange", ["gather", "threshold"])
def test_a_mix_by_hand_is_met_to_within_a_sample(exchange):
    check_mix_is_by_name(exchange)


def test_a_mix_that_names_no_label_of_the_pool_is_an_error():
    pool = random_pool()
    recipe = MixStrategy("domain", {"elsewhere": 1.0}).recipe(False, [])
    with pytest.raises(ValueError, match="selection.shares names .'elsewhere'., but the labels of 'domain' are .'domain0'"):
        _choose(recipe, pool)


def _choose(recipe, pool, **limits):
    from mads.console.recipe import Limits

    uses = np.zeros(len(pool), np.uint16)
    return choose(recipe, Limits(**limits), Draw(0, 0), 900, pool, [], np.zeros(0), uses, OneRank(), 64, lambda line: None)


@pytest.mark.parametrize("exchange", ["gather", "threshold"])
def test_values_without_a_logarithm_are_counted(exchange):
    pool = positive_pool()
    pool.values("value")[[4, 600]] = 0, -1
    recipe = ColumnStrategy("value", "proportional").recipe(False, [])
    with pytest.raises(ValueError, match="'value' gave 2 of 701 samples a score that is NaN or infinite"):
        _choose(recipe, pool, exchange=exchange)
    np.testing.assert_array_equal(ColumnScore("value", descending=False).score(np.float32([1.5, -2])), [-1.5, 2.0])


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(selector="best"), "selector='best' is not one of top_k, gumbel, proportional, random"),
        (dict(selector="gumbel"), "selector=gumbel and no other has a temperature"),
        (dict(temperature=1.0), "selector=gumbel and no other"),
        (dict(selector="gumbel", temperature=0.0), "temperature=0.0 must be positive"),
        (dict(band=[0.6, 0.5]), "0 <= low < high <= 1"),
        (dict(band=[0.0, 0.5], unit="shard"), "not for whole shards"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        build_strategy(dataclasses.replace(COLUMN, **settings))


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(shares={"a": -1.0, "b": 2.0}), "not negative"),
        (dict(shares={"a": 0.0}), "not all 0"),
        (dict(shares={}), "not all 0"),
        (dict(shares={"a": 1.0}, unit="shard"), "no unit=shard"),
        (dict(shares={"a": 1.0}, bounds={"domain": {}}), "no bounds"),
    ],
)
def test_mixes_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        build_strategy(MixSelectionConfig(name="mix", **settings))


# ---------------------------------------------------------------- the selector of selection=mads


def test_proportional_to_the_score_above_the_least_one():
    """First draws follow the weights; the sample with the least score comes last of all."""
    pool = Candidates(np.arange(4), np.ones(4, int), np.zeros(4, int))
    total, rounds = np.array([-2.0, -1.0, 0.0, 1.0]), 1500  # weights 0, 1/3, 2/3, 1 before scaling
    first = np.zeros(4)
    for round_ in range(rounds):
        order = ProportionalOrder()
        first[decide(Plan(order, Draw(1, round_), 1), pool, total).positions[0]] += 1
        assert set(decide(Plan(order, Draw(1, round_), 3), pool, total).positions.tolist()) == {1, 2, 3}
    expected = np.array([0, 1, 2, 3]) / 6
    assert np.abs(first / rounds - expected).max() < 4 * np.sqrt(0.25 / rounds)
    assert len(decide(Plan(ProportionalOrder(), Draw(0, 0), 3), pool, np.full(4, -7.0)).ids) == 3


@pytest.mark.parametrize("selector", ["gumbel", "top_k", "proportional"])
def test_the_selector_of_mads_is_the_order_of_its_scored_rounds(selector):
    pool, n = random_pool(n=400), 400
    strategy = build_strategy(MadsSelectionConfig(name="mads", selector=selector, temperature=0.7))
    rng = np.random.default_rng(0)
    total, uses = np.round(rng.normal(size=n), 1), rng.integers(0, 2, n)
    decision = decide(
        Plan(strategy.recipe(True, [LabelAgent("domain")]).order, Draw(2, 1), 9000),
        Candidates(pool.ids, pool.lengths, uses),
        total,
    )
    noise = gumbel(2, "decide/noise", 1, pool.ids)
    spread = np.maximum((total - total.min()) / np.ptp(total), 1e-300)
    key = {"gumbel": total / 0.7 + noise, "top_k": total, "proportional": np.log(spread) + noise}[selector]
    chosen = np.isin(pool.ids, decision.ids)
    assert 9000 <= decision.tokens < 9128
    used = uses[chosen].max()
    assert chosen[uses < used].all()  # fewer uses first
    assert key[chosen & (uses == used)].min() >= key[~chosen & (uses == used)].max()
    with pytest.raises(ValueError, match="selector='best'"):
        build_strategy(MadsSelectionConfig(name="mads", selector="best"))
