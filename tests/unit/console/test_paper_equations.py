"""selection=paper on a made-up pool against an independent transcription, through all of Eq. 4-8 with the projection; its mutants
are in tests/mutants/test_paper_mutants.py. tests/dist/test_paper_run.py does the same over a real run."""

import numpy as np
from fake_pool import OneRank, random_pool
from paper_support import assert_transcribed, listen, pool_of
from paper_transcription import on_simplex, what_is_wrong

from mads.agents import LabelAgent
from mads.config.schema import PaperSelectionConfig
from mads.console.console import Console
from mads.console.strategy import build_strategy
from mads.reward.probes import RoundRewards


def recorded(theta_rate, rounds=6, harm=0.0):
    """Rounds of a console: rewards of a label, noise, and `harm` for all."""
    config = PaperSelectionConfig(name="paper", probes_per_agent=52, agent_rate=0.3, theta_rate=theta_rate, use_decay=0.4)
    pool, uses = random_pool(n=500), np.zeros(500, np.uint16)
    console = Console(OneRank(), pool, [LabelAgent(a) for a in ("quality", "domain", "topic")], build_strategy(config), seed=5)
    seen = listen(console)
    for round_ in range(rounds):
        measured = None
        if console.needs_rewards():
            probes, rng = console.draw_probes(), np.random.default_rng(round_)
            view = pool.view(probes.positions)
            rewards = 1e-4 * (0.5 * view.codes("domain") + rng.normal(size=len(probes.positions)) - harm)
            measured = RoundRewards(probes, rewards, view.lengths.astype(np.int64) - 1)
        ids, _ = console.decide(measured, uses, 3000, 10 * round_, 0)
        uses[np.searchsorted(pool.ids, ids)] += 1
    return pool_of(console), seen


def check_console_follows_the_transcription():
    for theta_rate, harm in ((0.2, 0.0), (3.0, 0.0), (0.5, 4.0)):
        pool, rounds = recorded(theta_rate, harm=harm)
        assert_transcribed(pool, rounds, 0.3, theta_rate, 0.4)
        assert (rounds[-1]["uses"][np.isin(pool["ids"], rounds[-1]["ids"])] > 0).any()
        assert (min(min(seen["theta"].values()) for seen in rounds) == 0) == (theta_rate == 3.0)  # the projection has acted
        assert (min(rounds[-1]["w"]["quality"]) < 0) == (harm > 0)


def test_the_console_follows_the_transcription():
    check_console_follows_the_transcription()


def test_the_transcription_itself_on_numbers_done_by_hand():
    assert on_simplex({"a": 0.2, "b": 0.3, "c": 0.5}) == {"a": 0.2, "b": 0.3, "c": 0.5}
    assert on_simplex({"a": -0.4, "b": 0.6, "c": 0.8}) == {"a": 0.0, "b": 0.4, "c": 0.6000000000000001}
    assert on_simplex({"a": 2.0, "b": -0.5, "c": -0.5}) == {"a": 1.0, "b": 0.0, "c": 0.0}
    keys, tokens = np.array([1.0, 0.5, 0.5, 0.1]), np.array([10, 10, 10, 10])

    def verdict(budget, *chosen):
        return what_is_wrong(keys, tokens, budget, np.isin(np.arange(4), chosen))

    assert verdict(15, 0, 1) is None and verdict(15, 0, 2) is None
    assert "left out" in verdict(15, 1, 2) and "more than a sample" in verdict(15, 0, 1, 2)
    assert "without the last" in verdict(5, 0, 1) and "do not cover" in verdict(25, 0, 1)
