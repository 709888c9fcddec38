"""Mutants of decisions, probe draws and the ledger, as in test_mutants.py."""

from dataclasses import replace

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

from mads.config.schema import PaperSelectionConfig
from mads.console.order import TopKOrder

DECIDE, THRESHOLD, SELECTING = (f"unit/console/test_{name}.py" for name in ("decide", "threshold", "selecting"))
LOOP = f"{SELECTING}:test_x1_full_sort_and_threshold_equal_a_loop_over_single_samples"
SEARCH = f"{THRESHOLD}:check_equal_to_the_full_sort"


def _by_position(original):
    return lambda words, ties, weights, budget: original(words, np.arange(len(words)), weights, budget)


def _from_position_0(original):
    def survey(self):
        original(self)
        self.offset = 0

    return survey


def _one_use_more(original):
    def cells_of(self, where, uses):
        plan, more = self.plan, self.plan.max_uses and self.plan.max_uses + 1
        self.plan = replace(plan, max_uses=more)
        try:
            return original(self, where, uses)
        finally:
            self.plan = plan

    return cells_of


def _counted_from_the_pools_start(original):
    def consume(self, positions):
        positions = np.asarray(positions)
        own = positions[(positions >= self.start) & (positions < self.stop)]
        np.add.at(self.counts, own % max(1, len(self.counts)), 1)
        self.total += len(positions)

    return consume


def _reversed(original):
    def gather(array, group):
        whole = original(array, group)
        return whole if whole is None else whole[::-1]

    return gather


MUTANTS = [
    Mutant(
        "equal scores are ordered by position",
        "mads.console.decide:cover",
        _by_position,
        f"{DECIDE}:test_x1_top_k_equals_a_naive_full_sort",
        args=(1,),
    ),
    Mutant(
        "used samples compete with unused ones",
        "mads.console.decide:words_of",
        lambda original: lambda order, *rest: order.key(*rest),
        f"{DECIDE}:test_consume_once_comes_before_the_score",
    ),
    Mutant(
        "negative keys in reverse order",
        "mads.console.order:ordered_bits",
        lambda original: lambda key: (((key + 0.0).view(np.uint64) ^ np.uint64(1 << 63)) >> np.uint64(17)).view(np.int64),
        f"{DECIDE}:test_x1_gumbel_equals_a_naive_full_sort",
        args=(1,),
    ),
    Mutant(
        "threshold search: ties at the boundary fall by position",
        "mads.console.threshold:cover",
        _by_position,
        SEARCH,
        args=("top_k", "some", 1 << 20),
    ),
    Mutant(
        "threshold search: the boundary bucket is taken whole",
        "mads.console.threshold:cover",
        lambda original: lambda words, ties, weights, budget: np.arange(len(words)),
        SEARCH,
        args=("gumbel", "none", 40),
    ),
    Mutant(
        "threshold search: every slice starts at pool position 0",
        "mads.console.threshold:Search.survey",
        _from_position_0,
        "dist/test_threshold_ranks.py:check_the_same_decision",
        world=2,
        args=("gumbel", "none", 10),
    ),
    Mutant(
        "threshold search: the quotas' times are taken for exact",
        "mads.console.threshold:water_level",
        lambda original: lambda held, shares, amount: 0.7 * original(held, shares, amount),
        SEARCH,
        args=("natural", "some", 1),
    ),
    Mutant(
        "samples may be used once more than the limit",
        "mads.console.threshold:Search.cells_of",
        _one_use_more,
        SEARCH,
        args=("random", "none", 40),
    ),
    Mutant(
        "minima of labels are not covered first",
        "mads.console.decide:Bounds.tokens",
        lambda original: lambda self, budget: (np.zeros(len(self.labels), np.int64), original(self, budget)[1]),
        LOOP,
        args=("bounds",),
    ),
    Mutant(
        "a part of natural shares is a part of the same share for all",
        "mads.console.recipe:token_shares",
        lambda original: lambda *arguments: np.full_like(found := original(*arguments), 1 / len(found)),
        f"{SELECTING}:check_parts_of_natural_shares",
        args=(0.9,),
    ),
    Mutant(
        "maxima of labels do not hold",
        "mads.console.decide:Bounds.tokens",
        lambda original: lambda self, budget: (original(self, budget)[0], np.full(len(self.labels), 1 << 62)),
        LOOP,
        args=("tight",),
    ),
    Mutant(
        "a label that has one sample too little starts at once",
        "mads.console.decide:uniform",
        lambda original: lambda *arguments: np.zeros_like(original(*arguments)),
        LOOP,
        args=("joint",),
    ),
    Mutant(
        "means of shards are coarse",
        "mads.console.shards:FINE",
        lambda original: 1.0,
        f"{SELECTING}:test_x1_whole_shards_equal_a_loop_over_shards",
        args=(TopKOrder(0.1),),
    ),
    Mutant(
        "probes: those near enough are taken by position",
        "mads.reward.probes:_smallest",
        lambda original: lambda rows, quota: original(rows[:, [0, 2, 2]], quota),
        "unit/reward/test_probes.py:test_per_agent_probes_are_the_smallest_hashes_of_each_label",
    ),
    Mutant(
        "values of slices arrive in another order",
        "mads.console.exchange:gather_to_first",
        _reversed,
        "dist/test_console_ranks.py:check_columns_arrive",
        world=4,
        args=({"dp": 4}, [0, 1, 1, 30, 37], np.arange(37.0)),
    ),
    Mutant(
        "a slice of the ledger counts from the pool's start",
        "mads.data.ledger:Ledger.consume",
        _counted_from_the_pools_start,
        "unit/data/test_ledger.py:check_slices",
    ),
    Mutant(
        "decisions of a life that is undone are kept",
        "mads.logging.metrics:keep_decisions",
        lambda original: lambda run_dir, rounds: None,
        "unit/logging/test_decision_files.py:check_cut_back",
    ),
    Mutant(
        "agents forget when the pool grows",
        "mads.agents.agent:AgentBase.rebind",
        lambda original: lambda self, view: self.bind(view, self.rule),
        "unit/console/test_console.py:test_a_longer_pool_between_rounds_keeps_what_was_learned",
        args=(PaperSelectionConfig(name="paper", probes_per_agent=60),),
    ),
]


def run_mutated(name: str) -> str | None:
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)


def test_names_are_unique():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
