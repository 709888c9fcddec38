import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_pool import FakePool, random_pool

from mads.noise import hash64
from mads.reward import probes as probes_module
from mads.reward.probes import PerAgentProbes, SharedProbes, draw_probes

AGENTS = {"q": "quality", "d": "domain", "t": "topic"}


def _naive_draw(pool, attribute, quota, agent, seed, round_):
    noise = hash64(seed, f"probes/{agent}", round_, pool.ids).tolist()
    chosen = set()
    for label in set(pool.codes(attribute).tolist()):
        members = [i for i, c in enumerate(pool.codes(attribute)) if c == label]
        chosen |= set(sorted(members, key=lambda i: noise[i])[: quota[label]])
    return chosen


def test_per_agent_probes_are_the_smallest_hashes_of_each_label():
    pool = random_pool(n=2000)
    probes = draw_probes(pool, PerAgentProbes(65), AGENTS, 5, 2, piece=64)
    union = set()
    for agent, attribute, labels in (("q", "quality", 5), ("d", "domain", 7), ("t", "topic", 13)):
        sizes = np.bincount(pool.codes(attribute), minlength=labels)
        quota = [65 // labels] * labels
        for label in np.argsort(-sizes, kind="stable")[: 65 % labels]:
            quota[label] += 1
        expected = _naive_draw(pool, attribute, quota, agent, 5, 2)
        assert set(probes.positions[probes.members[agent]].tolist()) == expected
        assert set(probes.positions[probes.of_agent(agent)].tolist()) == expected
        union |= expected
    assert probes.positions.tolist() == sorted(union)
    assert probes.importance.mean() == pytest.approx(1)


def test_a_label_that_is_short_in_what_was_looked_at_is_looked_at_again(monkeypatch):
    """Limits that leave every label short at first, on all parts of a pool, and at last the same draw."""
    pool, passes = random_pool(n=700), []
    whole = draw_probes(pool, PerAgentProbes(65), AGENTS, 5, 2)
    original = probes_module._limits
    monkeypatch.setattr(probes_module, "SLACK", -1.0)
    monkeypatch.setattr(probes_module, "_limits", lambda *given: passes.append(given[2]) or original(*given))
    for part in _in_parts(pool, PerAgentProbes(65), [0, 1, 350, 700], 97):
        assert part.positions.tolist() == whole.positions.tolist()
    assert passes.count(-1.0) == 9 and len(passes) > 9  # three agents on three parts


def test_limits_let_the_quota_through():
    sizes, quota = np.array([10**9, 1000, 30, 0]), np.array([400, 100, 30, 0])
    limits = probes_module._limits(sizes, quota, 6.0)
    expected = limits[:2].astype(float) / 2.0**64 * sizes[:2]
    np.testing.assert_allclose(expected, [400 + 6 * 21, 100 + 6 * 11], rtol=1e-9)
    assert limits[2:].tolist() == [2**64 - 1] * 2


def test_shared_probes_serve_every_agent_and_change_by_round():
    pool = random_pool(n=2000)
    probes = draw_probes(pool, SharedProbes(100), AGENTS, 5, 2)
    assert 90 <= len(probes.positions) <= 100
    assert [int(m.sum()) for m in probes.members.values()] == [34, 33, 33]
    assert all(probes.of_agent(a).all() for a in AGENTS)
    again = draw_probes(pool, SharedProbes(100), AGENTS, 5, 2)
    np.testing.assert_array_equal(again.positions, probes.positions)
    assert draw_probes(pool, SharedProbes(100), AGENTS, 5, 3).positions.tolist() != probes.positions.tolist()


def test_labels_with_few_samples_give_all_they_have():
    pool = random_pool(n=300)
    codes = np.r_[np.zeros(3, np.uint16), np.ones(297, np.uint16)]
    pool = FakePool(pool.ids, pool.lengths, {"domain": (codes, ("rare", "common", "absent"))})
    probes = draw_probes(pool, PerAgentProbes(40), {"d": "domain"}, 0, 0)
    assert np.bincount(codes[probes.positions]).tolist() == [3, 20]
    np.testing.assert_allclose(probes.importance[3:] / probes.importance[0], 297 / 20)


def test_importance_weights_undo_the_draw():
    """Horvitz-Thompson: over many rounds the weighted mean of any value is the pool's, the plain mean is not."""
    pool = random_pool(n=600, seed=3)
    value = pool.codes("topic") + 2.0 * (pool.codes("quality") == 4)
    weighted, plain = [], []
    for round_ in range(200):
        probes = draw_probes(pool, SharedProbes(120), AGENTS, 1, round_)
        v = value[probes.positions]
        weighted.append((probes.importance * v).sum() / probes.importance.sum())
        plain.append(v.mean())
    error = np.std(weighted) / np.sqrt(200)
    assert abs(np.mean(weighted) - value.mean()) < 4 * error < abs(np.mean(plain) - value.mean())


def test_inclusion_probability_equals_its_frequency():
    pool = random_pool(n=150, seed=4)
    counts, rounds = np.zeros(150), 600
    expected = np.ones(150)
    for attribute, quota in (("quality", 20), ("domain", 20), ("topic", 20)):
        codes = pool.codes(attribute)
        sizes, labels = np.bincount(codes), len(pool.labels(attribute))
        q = np.full(labels, quota // labels)
        q[np.argsort(-sizes, kind="stable")[: quota % labels]] += 1
        expected *= 1 - (np.minimum(q, sizes) / sizes)[codes]
    for round_ in range(rounds):
        probes = draw_probes(pool, SharedProbes(60), AGENTS, 2, round_)
        counts[probes.positions] += 1
    inclusion = 1 - expected
    np.testing.assert_allclose(
        probes.importance, (1 / inclusion[probes.positions]) / (1 / inclusion[probes.positions]).mean(), rtol=1e-12
    )
    spread = np.sqrt(inclusion * (1 - inclusion) / rounds)
    assert (np.abs(counts / rounds - inclusion) <= 5 * spread + 1e-12).all()


def test_x1_the_draw_does_not_depend_on_how_often_it_is_asked_or_on_other_samples_order():
    """Adding samples with other labels leaves a label's own probes alone."""
    pool = random_pool(n=500)
    codes = np.arange(500, dtype=np.uint16) % 2
    small = FakePool(pool.ids, pool.lengths, {"domain": (codes, ("a", "b"))})
    keep = np.flatnonzero((codes == 0) | (np.arange(500) < 300))
    part = small.view(keep)
    whole = draw_probes(small, PerAgentProbes(20), {"d": "domain"}, 0, 0)
    less = draw_probes(part, PerAgentProbes(20), {"d": "domain"}, 0, 0)
    of_a = lambda p, probes: p.ids[probes.positions][p.codes("domain")[probes.positions] == 0].tolist()  # noqa: E731
    assert of_a(small, whole) == of_a(part, less)


def test_x5_too_few_probes_and_empty_pools_are_named():
    pool = random_pool(n=100)
    with pytest.raises(ValueError, match="agent 't' has 12 probes for 13 labels"):
        draw_probes(pool, SharedProbes(36), AGENTS, 0, 0)
    with pytest.raises(ValueError, match="empty"):
        draw_probes(pool.view(slice(0, 0)), SharedProbes(60), AGENTS, 0, 0)


def _in_parts(pool, plan, cuts, piece):
    """The draws of several processes, each with its part of the pool, that meet at every exchange as in an all-gather."""
    parts = [slice(a, b) for a, b in zip(cuts, cuts[1:])]
    barrier, sent = threading.Barrier(len(parts)), [None] * len(parts)

    def draw(at):
        def join(rows):
            sent[at] = rows
            barrier.wait()
            everything = np.concatenate(sent)
            barrier.wait()
            return everything

        return draw_probes(pool, plan, AGENTS, 5, 2, parts[at], join, piece)

    with ThreadPoolExecutor(len(parts)) as threads:
        return list(threads.map(draw, range(len(parts))))


def check_cuts(plan, cuts, piece):
    pool = random_pool(n=700)
    whole = draw_probes(pool, plan, AGENTS, 5, 2)
    for part in _in_parts(pool, plan, cuts, piece):
        assert part.positions.tolist() == whole.positions.tolist() and part.importance.tolist() == whole.importance.tolist()
        assert {a: m.tolist() for a, m in part.members.items()} == {a: m.tolist() for a, m in whole.members.items()}


@pytest.mark.parametrize("plan", [SharedProbes(90), PerAgentProbes(40)])
@pytest.mark.parametrize("cuts, piece", [([0, 700], 64), ([0, 0, 1, 350, 700], 1000), ([0, 699, 700], 97)])
def test_x1_the_draw_is_the_same_however_the_pool_is_cut_and_read(plan, cuts, piece):
    check_cuts(plan, cuts, piece)
