"""The selection protocol on 1, 2 and 4 gloo ranks."""

import dataclasses
import functools

import numpy as np
import pytest
from fake_pool import random_pool
from harness import run_ranks
from topologies import topology as topology_of

import mads.console.exchange as exchange
from mads.agents import LabelAgent
from mads.config.schema import MadsSelectionConfig, PaperSelectionConfig, StratifiedSelectionConfig
from mads.console.choose import own_slice
from mads.console.console import Console
from mads.console.exchange import broadcast_decision, gather_column
from mads.console.strategy import build_strategy
from mads.reward.probes import RoundRewards

CONFIGS = {
    "paper": PaperSelectionConfig(name="paper", probes_per_agent=60),
    "mads": MadsSelectionConfig(name="mads", probes=120),
    "stratified": StratifiedSelectionConfig(name="stratified"),
}


def _error_of(call):
    """(type, message) of what the call raises on this rank; (None, "") if it does not."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return None, ""


def _rounds(grid, name, rounds, **settings):
    pool, topology = random_pool(n=701), topology_of(**grid)
    uses, own = np.zeros(len(pool), np.uint16), slice(*own_slice(pool, topology))
    strategy = build_strategy(dataclasses.replace(CONFIGS[name], **settings))
    console = Console(topology, pool, [LabelAgent(a) for a in ("quality", "domain", "topic")], strategy, 3, piece=100)
    result = []
    for _ in range(rounds):
        rewards = None
        if console.needs_rewards():
            probes = console.draw_probes()
            noise = np.random.default_rng(console.round).normal(size=len(probes.positions))
            values = noise + pool.codes("domain")[probes.positions]
            rewards = RoundRewards(probes, values, pool.lengths[probes.positions].astype(np.int64))
        ids, record = console.decide(rewards, uses[own], 6000, 0, 0)
        uses[np.searchsorted(pool.ids, ids)] += 1
        value = None if record is None else dataclasses.asdict(dataclasses.replace(record, seconds={}))
        result.append((ids.tolist(), console.theta.tolist(), value))
    return result


BOUNDS = {"domain": {"domain1": [0.3, 0.5], "domain4": [0.0, 0.01]}}
SETTINGS = [
    ("paper", {}),
    ("mads", {}),
    ("mads", {"bounds": BOUNDS}),
    ("paper", {"max_uses": 1}),
    ("stratified", {}),
    ("mads", {"unit": "shard"}),
    ("mads", {"bounds": {"domain": 0.6}}),
]
GRIDS = [{}, {"dp": 2}, {"dp": 4}, {"dp": 2, "tp": 2}, {"pp": 2, "tp": 2}]


def _all_settings(grid, exchange):
    results = []
    for name, settings in SETTINGS:
        chosen = "auto" if settings.get("unit") == "shard" else exchange
        results.append(_rounds(grid, name, 4, exchange=chosen, **settings))
    return results


@functools.cache
def _alone(exchange):
    [everything] = run_ranks(1, _all_settings, {}, exchange, timeout=120)
    return everything


@pytest.mark.parametrize(
    "exchange, grids",
    [
        ("gather", GRIDS[3:]),
        ("threshold", GRIDS[1:]),
        pytest.param("gather", GRIDS[:3], marks=pytest.mark.full),
        pytest.param("threshold", GRIDS[:1], marks=pytest.mark.full),
    ],
)
def test_x1_x3_the_same_ids_on_any_number_of_ranks_and_by_either_exchange(exchange, grids):
    """pp=2, tp=2: three of four data-parallel groups lack rank 0."""
    alone = _alone("gather")
    for (_, settings), result in zip(SETTINGS, alone):
        assert len({tuple(ids) for ids, _, _ in result}) == (1 if "unit" in settings else 4)
    assert alone[0][-1][2]["agent_rewards"]
    for grid in grids:
        world = int(np.prod([1, *grid.values()]))
        for rank, everything in enumerate(run_ranks(world, _all_settings, grid, exchange, timeout=240)):
            for result, result_1 in zip(everything, alone):
                for (ids, theta, record), (ids_1, theta_1, record_1) in zip(result, result_1):
                    assert ids == ids_1 and theta == theta_1
                    assert record == (record_1 if rank == 0 else None)


def test_bounds_hold_and_used_samples_are_left_out():
    alone = _alone("threshold")
    for *_, record in alone[2]:
        share = {label["label"]: label["chosen_share"] for label in record["labels"]["domain"]}
        assert 0.3 <= share["domain1"] < 0.5 + 128 / 6000 and share["domain4"] < 0.01 + 128 / 6000
    for *_, record in alone[6]:
        assert all(label["chosen_share"] > 0.6 * label["pool_share"] for label in record["labels"]["domain"])
    ids = [set(ids) for ids, _, _ in alone[3]]
    assert not any(ids[i] & ids[j] for i in range(4) for j in range(i))


def check_columns_arrive(grid, cuts, values):
    topology, local = topology_of(**grid), values[:0]
    if topology.is_replica_leader:
        d = topology.coordinate("dp")
        local = values[cuts[d] : cuts[d + 1]]
    whole = gather_column(local, topology, len(values))
    assert (whole is None) == (topology.rank > 0)
    if whole is not None:
        np.testing.assert_array_equal(whole, values)


def test_x1_values_arrive_in_pool_order_however_the_pool_is_cut():
    values = np.random.default_rng(0).normal(size=37)
    values[5] = np.nan  # found elsewhere, carried unchanged
    cases = [({"dp": 4}, [0, 1, 1, 30, 37]), ({"dp": 2, "tp": 2}, [0, 36, 37])]
    cases += [({"pp": 2, "dp": 2}, [0, 0, 37]), ({"tp": 4}, [0, 37])]
    for grid, cuts in cases:
        run_ranks(4, check_columns_arrive, grid, cuts, values)


def _short_gather(grid):
    topology = topology_of(**grid)
    return _error_of(lambda: gather_column(np.zeros(5 if topology.rank == 0 else 4), topology, 10))


def test_slices_that_do_not_add_up_raise_everywhere():
    for kind, message in run_ranks(2, _short_gather, {"dp": 2}):
        assert kind == "SelectionMismatchError" and "9 samples arrived for a pool of 10" in message and "1: 4" in message


def check_damage_is_named(bad_rank, message, byte):
    """One byte of broadcast number `message` (0 = header, 1 = ids) is flipped on one rank after it arrived: every rank raises."""
    topology, original, calls = topology_of(dp=4), exchange.broadcast_array, []

    def flipping(*args, **kwargs):
        array = original(*args, **kwargs)
        calls.append(len(array))
        if topology.rank == bad_rank and len(calls) == message + 1:
            array.view(np.uint8)[byte] ^= 1
        return array

    exchange.broadcast_array = flipping
    try:
        ids = np.arange(100, 140, dtype=np.int64) if topology.rank == 0 else None
        kind, text = _error_of(lambda: broadcast_decision(2, ids, topology))
    finally:
        exchange.broadcast_array = original
    assert kind == "SelectionMismatchError" and f"on ranks [{bad_rank}];" in text and f"rank {bad_rank}: header" in text


@pytest.mark.parametrize(
    "bad_rank, message, byte", [(1, 1, 0), (3, 1, 319), (2, 1, 163), (3, 0, 0), (1, 0, 23), (2, 0, 8), (0, 1, 7)]
)
def test_x2_one_damaged_byte_fails_every_rank_and_names_the_one(bad_rank, message, byte):
    run_ranks(4, check_damage_is_named, bad_rank, message, byte)


def _out_of_step(lagging):
    topology = topology_of(dp=2)
    ids = np.arange(5) if topology.rank == 0 else None
    return _error_of(lambda: broadcast_decision(3 if topology.rank == lagging else 4, ids, topology))


def test_x2_a_rank_in_another_round_fails_every_rank():
    for kind, text in run_ranks(2, _out_of_step, 1):
        assert kind == "SelectionMismatchError" and "on ranks [1];" in text


def check_ids_reach_every_rank(grid):
    topology = topology_of(**grid)
    sent = (np.arange(7, dtype=np.int64)[::-1] << 40) + 5
    assert broadcast_decision(0, np.zeros(0, np.int64) if topology.rank == 0 else None, topology).tolist() == []
    received = broadcast_decision(1, sent if topology.rank == 0 else None, topology)
    assert received.tolist() == [(i << 40) + 5 for i in range(6, -1, -1)]


@pytest.mark.parametrize("grid", [{"dp": 4}, {"pp": 2, "tp": 2}, {"dp": 2, "tp": 2}], ids=str)
def test_x3_broadcast_delivers_order_and_large_ids_to_the_world(grid):
    run_ranks(4, check_ids_reach_every_rank, grid)


def _agents_differ(case):
    topology, pool = topology_of(dp=4), random_pool(n=100)
    names = ["quality", "domain", "topic"]
    if topology.rank == 2:
        names = {"absent": ["quality", "domain"], "order": ["domain", "quality", "topic"], "other": names}[case]
    agents = [LabelAgent("quality" if case == "other" and topology.rank == 2 and n == "topic" else n, name=n) for n in names]
    return _error_of(lambda: Console(topology, pool, agents, build_strategy(CONFIGS["mads"]), 0))


@pytest.mark.parametrize(
    "case, text",
    [
        ("absent", "agent 'topic' is absent on ranks [2]"),
        ("other", "agent 'topic' is not the same on ranks [2]"),
        ("order", "ranks [2] hold the agents in another order"),
    ],
)
def test_x5_an_agent_that_differs_on_a_rank_is_named_everywhere(case, text):
    for kind, message in run_ranks(4, _agents_differ, case):
        assert kind == "SelectionMismatchError" and text in message


class _Failing(LabelAgent):
    """Raises while scoring on one rank."""

    failing = False

    def score(self, view):
        if self.failing:
            raise OSError("the attribute column is gone")
        return super().score(view)


def _one_rank_fails(phase, exchange):
    topology, pool = topology_of(dp=2), random_pool(n=200)
    agent = _Failing("domain")
    console = Console(topology, pool, [agent], build_strategy(dataclasses.replace(CONFIGS["paper"], exchange=exchange)), 0)
    uses = np.zeros(100, np.uint16)
    console.decide(None, uses, 500, 0, 0)
    probes = console.draw_probes()
    rewards = np.arange(len(probes.positions), dtype=np.float64)
    if phase == "scoring":
        agent.failing = topology.rank == 1
    elif phase == "deciding":
        uses = uses[:-1] if topology.rank == 0 else uses
    elif phase == "rewards":
        rewards[0] += 1e-12 * topology.rank
    elif phase == "missing" and topology.rank == 1:
        return _error_of(lambda: console.decide(None, uses, 500, 0, 0))
    return _error_of(lambda: console.decide(RoundRewards(probes, rewards, np.full(len(rewards), 9)), uses, 500, 0, 0))


@pytest.mark.parametrize("exchange, name", [("gather", "scoring"), ("threshold", "survey")])
def test_a_rank_that_fails_takes_all_with_it(exchange, name):
    zero, one = run_ranks(2, _one_rank_fails, "scoring", exchange)
    assert one == ("OSError", "the attribute column is gone")
    assert zero == ("RankFailedError", f"{name} failed on ranks [1]: rank 1: OSError: the attribute column is gone")
    zero, one = run_ranks(2, _one_rank_fails, "deciding", exchange)
    assert zero[0] == "ValueError" and "99 use counts" in zero[1]
    assert one[0] == "RankFailedError" and "rank 0: ValueError" in one[1]
    zero, one = run_ranks(2, _one_rank_fails, "missing", exchange)
    assert one[0] == "ValueError" and zero[0] == "RankFailedError" and "needs rewards" in zero[1]


def test_rewards_that_differ_between_ranks_are_refused():
    for kind, message in run_ranks(2, _one_rank_fails, "rewards", "auto"):
        assert kind == "ReplicaMismatchError" and "the rewards of round 1" in message
