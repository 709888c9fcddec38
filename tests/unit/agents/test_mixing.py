"""Online mixing: each update against loops over labels and rounds, and what the mixes come to in simulated runs."""

import itertools
import math

import numpy as np
import pytest
from fake_pool import FakePool, random_pool
from scipy.optimize import nnls

from mads.agents.base import ProbeRewards
from mads.agents.mixers import AdoAgent, AioliAgent, OdmAgent
from mads.agents.mixing import LossRule, contrast, descend, deviated, fit_power_law, fit_response
from mads.agents.rules import scale_rewards

INTERVAL, SMOOTHING = 20, 0.4
ADO = {"credit_rate": 0.1, "preference_rate": 0.2, "power": 0.5, "floor": 0.03, "law_rounds": 3}
AIOLI = {"shares": "natural", "deviation": 0.4, "rate": 0.3, "decay": 0.9, "ridge": 0.2, "floor": 0.02}


def gapped_pool(seed=0):
    """`random_pool` whose attribute domain has a label that no sample carries."""
    pool = random_pool(500, seed)
    columns = {name: (pool.codes(name), pool.labels(name)) for name in pool.attributes}
    codes = pool.codes("domain").copy()
    codes[codes == 2] = 3
    columns["domain"] = (codes, pool.labels("domain"))
    return FakePool(pool.ids, pool.lengths, columns)


def bound(agent, pool):
    agent.bind(pool, LossRule())
    return agent


def probed(pool, losses, rng, references=None, skip=()):
    """A probe round whose token-mean losses by label of domain are `losses`, with noise that cancels inside each label."""
    view = pool.view(np.sort(rng.choice(len(pool), 120, replace=False)))
    codes = view.codes("domain")
    view = view.view(~np.isin(codes, skip))
    codes, targets = view.codes("domain"), rng.integers(5, 100, len(view))
    noise = rng.normal(size=len(view))
    for j in np.unique(codes):
        of = codes == j
        noise[of] -= np.average(noise[of], weights=targets[of])
    return ProbeRewards(view, np.asarray(losses)[codes] + noise, targets, np.ones(len(view)), references or {})


def taken(pool, mix, rng, tokens=3000):
    """A decision with about these shares."""
    order, chosen = rng.permutation(len(pool)), []
    left = np.asarray(mix) * tokens
    for i in order:
        if left[pool.codes("domain")[i]] > 0:
            left[pool.codes("domain")[i]] -= pool.lengths[i]
            chosen.append(i)
    return pool.view(np.sort(np.array(chosen)))


def token_shares_by_loop(view, labels):
    total = [0] * labels
    for code, length in zip(view.codes("domain").tolist(), view.lengths.tolist()):
        total[code] += length
    return total


# ---------------------------------------------------------------- ODM


def check_odm_equals_a_loop():
    pool, rng = gapped_pool(), np.random.default_rng(5)
    agent = bound(OdmAgent("domain", INTERVAL, SMOOTHING), pool)
    arms = [j for j in range(7) if (pool.codes("domain") == j).any()]
    pi, estimate, before = {j: 1 / len(arms) for j in arms}, dict.fromkeys(arms, 0.0), 1 / len(arms)
    assert len(arms) == 6 and agent.mix.tolist() == [pi.get(j, 0.0) for j in range(7)]
    for round_ in range(1, 9):
        losses = rng.uniform(1.0, 6.0, 7)
        skip = [int(rng.integers(7))] if round_ % 3 == 0 else []
        assert agent.learn(probed(pool, losses, rng, skip=skip)) == 0.0
        for j in arms:
            if j not in skip:
                estimate[j] = SMOOTHING * estimate[j] + (1 - SMOOTHING) * losses[j] / pi[j]
        rate = min(1 / len(arms), math.sqrt(math.log(len(arms)) / (len(arms) * INTERVAL * round_)))
        total = sum(math.exp(before * e) for e in estimate.values())
        pi = {j: (1 - len(arms) * rate) * math.exp(before * estimate[j]) / total + rate for j in arms}
        before = rate
        np.testing.assert_allclose(agent.mix, [pi.get(j, 0.0) for j in range(7)], rtol=1e-9)
        assert min(pi.values()) >= rate and agent.mix[2] == 0


def test_odm_equals_a_loop():
    check_odm_equals_a_loop()


def check_odm_goes_to_the_highest_loss():
    """A bandit whose arms have noisy losses: the arm with the highest loss ends with the greatest share, over 20 seeds."""
    won = 0
    for seed in range(20):
        pool, rng = random_pool(seed=seed), np.random.default_rng(seed)
        agent = bound(OdmAgent("domain", 50, 0.5), pool)
        means = rng.permutation([2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 4.5])
        for _ in range(20):
            agent.learn(probed(pool, means + 0.1 * rng.normal(size=7), rng))
        won += int(np.argmax(agent.mix) == np.argmax(means))
        assert agent.mix.sum() == pytest.approx(1) and agent.mix[np.argmax(means)] > 1.1 / 7
    assert won == 20


def test_odm_goes_to_the_arm_with_the_highest_loss():
    check_odm_goes_to_the_highest_loss()


# ---------------------------------------------------------------- ADO


def law_by_search(tokens, losses):
    """(error, eps, beta, alpha) of the best law, by non-negative least squares at each exponent."""
    found = []
    for hundredth in range(5, 81):
        x = [(n / tokens[-1]) ** (-hundredth / 100) for n in tokens]
        (eps, beta), norm = nnls(np.stack([np.ones(len(x)), x], axis=1), np.asarray(losses))
        found.append((norm**2, eps, beta, hundredth / 100))
    return min(found)


def check_power_law_is_the_best_one():
    rng = np.random.default_rng(0)
    for case in range(12):
        tokens = np.cumsum(rng.integers(500, 2000, 3 + case)).astype(float)
        losses = 1.5 + 3 * (tokens / tokens[0]) ** -0.35 + 0.05 * rng.normal(size=len(tokens))
        losses = {0: losses, 1: losses[::-1], 2: 4 * (tokens / tokens[0]) ** -1.5}[case % 3]  # falling, rising, faster than any
        law, (error, _, beta, alpha) = fit_power_law(tokens, losses), law_by_search(tokens, losses)
        ours = ((losses - law.eps - law.beta * (tokens / tokens[-1]) ** -law.alpha) ** 2).sum()
        assert ours == pytest.approx(error, rel=1e-7, abs=1e-12) and law.eps >= 0 and law.beta >= 0
        assert law.speed == pytest.approx(alpha * beta, rel=1e-5, abs=1e-7)
    exact = 1.2 + 2.5 * (tokens / tokens[-1]) ** -0.3
    law = fit_power_law(tokens, exact)
    assert (law.eps, law.beta, law.alpha) == pytest.approx((1.2, 2.5, 0.3), rel=1e-6)


def test_the_power_law_is_the_one_of_least_error():
    check_power_law_is_the_best_one()


def check_ado_equals_a_loop():
    pool, rng = gapped_pool(), np.random.default_rng(6)
    agent = bound(AdoAgent("domain", INTERVAL, **ADO), pool)
    held = [j for j in range(7) if (pool.codes("domain") == j).any()]
    whole = token_shares_by_loop(pool, 7)
    mu = {j: whole[j] / sum(whole) for j in held}
    h, average, tokens, seen = dict(mu), dict(mu), 0, {j: [] for j in held}
    speeds = rng.uniform(0.1, 0.8, 7)
    for round_ in range(1, 10):
        view = taken(pool, agent.mix, rng)
        agent.chosen(view)
        counted = token_shares_by_loop(view, 7)
        tokens += sum(counted)
        losses = 1.5 + 3 * (tokens / 3000) ** -speeds + 0.02 * rng.normal(size=7)
        skip = [held[round_ % 6]] if round_ > 4 else []
        agent.learn(probed(pool, losses, rng, skip=skip))
        for j in held:
            for _ in range(INTERVAL):  # the paper's running mean, step by step
                h[j] = 0.9 * h[j] + 0.1 * counted[j] / sum(counted)
            if j not in skip:
                seen[j].append((tokens, losses[j]))
        if round_ < 3:
            expected = mu
        else:
            rho = {}
            for j in held:
                _, _, beta, alpha = law_by_search([float(n) for n, _ in seen[j]], [v for _, v in seen[j]])
                rho[j] = mu[j] * math.sqrt(h[j]) * alpha * beta
            rho = {j: max(0.03, v / sum(rho.values())) for j, v in rho.items()}
            rho = {j: v / sum(rho.values()) for j, v in rho.items()}
            expected = {j: 0.2 * rho[j] + 0.8 * average[j] for j in held}
            average = {j: (1 - 1 / (round_ + 1)) * average[j] + rho[j] / (round_ + 1) for j in held}
        np.testing.assert_allclose(agent.mix, [expected.get(j, 0.0) for j in range(7)], rtol=1e-5)


def test_ado_equals_a_loop():
    check_ado_equals_a_loop()


def test_ado_prefers_the_label_that_still_learns():
    pool, rng = random_pool(), np.random.default_rng(1)
    agent = bound(AdoAgent("domain", INTERVAL, **ADO), pool)
    for _ in range(8):
        agent.chosen(taken(pool, agent.mix, rng))
        losses = np.full(7, 3.0)
        losses[4] = 1 + 4 * (agent.tokens / 3000) ** -0.5
        agent.learn(probed(pool, losses, rng))
    assert np.argmax(agent.mix / agent.shares) == 4 and agent.mix[4] > 1.5 * agent.shares[4]


# ---------------------------------------------------------------- free group probes


@pytest.mark.parametrize("labels", [2, 3, 5, 7, 8, 13])
def test_contrasts_are_balanced_and_span_all_differences(labels):
    size = 1 << (labels - 1).bit_length()
    made = np.array([contrast(labels, i) for i in range(2 * (size - 1))])
    assert set(np.unique(made)) == {-1.0, 1.0} and np.array_equal(made.sum(0), np.zeros(labels))
    assert np.linalg.matrix_rank(made[::2] - made[::2].mean(1, keepdims=True)) == labels - 1
    assert all(len(set(row)) == 2 for row in made.tolist())  # none moves all labels alike
    for first, second in zip(made[::2], made[1::2]):
        assert np.array_equal(first, -second)


def check_response_equals_weighted_least_squares():
    """All effects at once, by the normal equations of a dense problem, one row a round."""
    rng = np.random.default_rng(3)
    for rounds, labels, decay, ridge in ((25, 4, 0.9, 0.3), (12, 3, 1.0, 1e-9), (40, 7, 0.95, 0.1)):
        mixes = rng.dirichlet(np.full(labels, 3.0), rounds)
        changes = -0.3 + 0.01 * np.arange(rounds) + mixes @ rng.normal(size=labels) + 0.02 * rng.normal(size=rounds)
        found = fit_response(mixes, changes, decay, ridge)
        w = np.array([decay ** (rounds - 1 - r) for r in range(rounds)])
        w *= w.sum() / (w**2).sum()
        a = np.array([[1.0, r, *mixes[r]] for r in range(rounds)])
        x = np.concatenate([a[:, 2:], changes[:, None]], axis=1)
        base = a[:, :2]
        x = x - base @ np.linalg.lstsq(np.sqrt(w)[:, None] * base, np.sqrt(w)[:, None] * x, rcond=None)[0]
        scatter = sum(w[r] * np.outer(x[r, :-1], x[r, :-1]) for r in range(rounds))
        penalty = ridge * np.trace(scatter) / (labels - 1)
        big = np.zeros((labels + 2, labels + 2))
        big[2:, 2:] = penalty * np.eye(labels)
        joint = np.linalg.solve(a.T @ (w[:, None] * a) + big + 1e-11 * np.eye(labels + 2), a.T @ (w * changes))[2:]
        np.testing.assert_allclose(found.gradient, joint - joint.mean(), rtol=1e-3, atol=1e-5)
        effects = np.trace(np.linalg.solve(scatter + penalty * np.eye(labels), scatter))
        error = sum(w[r] * (x[r, -1] - x[r, :-1] @ found.gradient) ** 2 for r in range(rounds))
        explained = sum(w[r] * x[r, -1] ** 2 for r in range(rounds)) - error
        trust = max(0.0, 1 - 2 * effects * error / (w.sum() - 2 - effects) / explained)
        assert found.trust == pytest.approx(trust, rel=1e-6) and found.trust > 0.5


def test_the_response_equals_a_dense_weighted_ridge():
    check_response_equals_weighted_least_squares()


def test_too_few_rounds_or_one_mix_say_nothing():
    rng = np.random.default_rng(0)
    for rounds in range(5):
        found = fit_response(rng.dirichlet(np.ones(5), rounds), rng.normal(size=rounds), 0.9, 0.1)
        assert found.trust == 0 and found.gradient.tolist() == [0.0] * 5
    assert fit_response(np.full((9, 3), 1 / 3), rng.normal(size=9), 0.9, 0.1).trust == 0
    mix = np.array([0.2, 0.3, 0.5])
    assert descend(mix, fit_response(np.full((9, 3), 1 / 3), rng.normal(size=9), 0.9, 0.1), 1.0, 0.3) is mix


def check_aioli_equals_a_loop():
    pool, rng = gapped_pool(), np.random.default_rng(7)
    agent = bound(AioliAgent("domain", **AIOLI), pool)
    held = [j for j in range(7) if (pool.codes("domain") == j).any()]
    whole = np.array(token_shares_by_loop(pool, 7))[held]
    centre, mixes, losses = (whole / whole.sum()).tolist(), [], []
    np.testing.assert_allclose(agent.mix[held], centre, rtol=1e-12)
    effect = 0.3 * rng.normal(size=7)
    loss, moved = 6.0, 0
    for round_ in range(1, 25):
        view = taken(pool, agent.mix, rng)
        agent.chosen(view)
        counted = np.array(token_shares_by_loop(view, 7))
        q = counted / counted.sum()
        loss += -0.2 + 0.004 * round_ + q @ effect + 0.002 * rng.normal()
        agent.learn(probed(pool, np.ones(7), rng, {"one": loss - 0.5, "two": loss + 0.5}))
        losses.append(loss)
        mixes.append(q[held])
        found = fit_response(
            np.array(mixes[1:]).reshape(-1, 6), np.array([b - a for a, b in itertools.pairwise(losses)]), 0.9, 0.2
        )
        if found.trust > 0:
            mean = sum(p * g for p, g in zip(centre, found.gradient))
            spread = math.sqrt(sum(p * (g - mean) ** 2 for p, g in zip(centre, found.gradient)))
            centre = [p * math.exp(-0.3 * found.trust * (g - mean) / spread) for p, g in zip(centre, found.gradient)]
            centre = [max(0.02, p / sum(centre)) for p in centre]
            centre = [p / sum(centre) for p in centre]
            moved += 1
        signs = contrast(6, round_ - 1)
        asked = [p * math.exp(0.4 * s) for p, s in zip(centre, signs)]
        np.testing.assert_allclose(agent.mix[held], np.array(asked) / sum(asked), rtol=1e-7)
        assert agent.mix[2] == 0
    assert moved > 5


def test_free_group_probes_equal_a_loop():
    check_aioli_equals_a_loop()


def simulated_aioli(seed, noise, rounds=40, effect=None, **settings):
    """Free group probes on a linear response with a decaying trend and noise: (last centre, effects by share)."""
    rng = np.random.default_rng(seed)
    effect = rng.permutation([-0.10, -0.08, 0.02, 0.03, 0.04, 0.04, 0.05]) if effect is None else effect
    pool = random_pool(200, seed)
    agent = bound(AioliAgent("domain", **{**AIOLI, "floor": 0.01, "decay": 0.95, "deviation": 0.5, **settings}), pool)
    loss, view = 6.0, pool.view(np.arange(60))
    for round_ in range(rounds):
        agent.taken = np.round(1e6 * agent.mix).astype(np.int64)
        loss += -0.05 / (1 + 0.1 * round_) + agent.mix @ effect + noise * rng.normal()
        agent.learn(ProbeRewards(view, np.ones(60), np.ones(60, int), np.ones(60), {"task": loss}))
    return agent.centre, agent.shares, effect


def check_aioli_finds_the_better_labels():
    gains, found = [], 0
    for seed in range(24):
        centre, start, effect = simulated_aioli(seed, noise=0.012)
        gains.append(start @ effect - centre @ effect)
        found += int(centre[np.argsort(effect)[:2]].sum() > 0.6)
    gains = np.array(gains)
    assert found >= 22 and gains.mean() > 0.07 and (gains > 0).sum() >= 23, (found, gains)


def test_free_group_probes_find_the_better_labels():
    check_aioli_finds_the_better_labels()


def check_noise_alone_moves_little():
    """Without any effect the mix stays near its start: the mean KL divergence is a small part of what real effects bring."""
    drift, real = [], []
    for seed in range(24):
        for result, effect in ((drift, np.zeros(7)), (real, None)):
            centre, start, _ = simulated_aioli(seed, noise=0.012, effect=effect)
            result.append((centre * np.log(centre / start)).sum())
    assert np.mean(drift) < 0.25 * np.mean(real), (np.mean(drift), np.mean(real))


def test_noise_alone_moves_little():
    check_noise_alone_moves_little()


# ---------------------------------------------------------------- all three


def mixers():
    return [OdmAgent("domain", INTERVAL, SMOOTHING), AdoAgent("domain", INTERVAL, **ADO), AioliAgent("domain", **AIOLI)]


def check_mixers_states_are_enough(rounds=18, stop=16):
    """Saved as JSON in the middle and restored, an agent goes on bit for bit."""
    import json

    for which in range(3):
        ends = []
        for broken in (False, True):
            pool, rng = gapped_pool(), np.random.default_rng(which)
            agent, loss = bound(mixers()[which], pool), 6.0
            for round_ in range(rounds):
                if broken and round_ == stop:
                    state = json.loads(json.dumps(agent.state(), allow_nan=False))
                    agent = bound(mixers()[which], pool)
                    agent.load_state(state)
                agent.chosen(taken(pool, agent.mix, rng, 1000))
                loss += agent.taken / agent.taken.sum() @ np.linspace(-0.3, 0.3, 7)
                agent.learn(probed(pool, rng.uniform(2, 5, 7), rng, {"task": loss}))
            ends.append(json.dumps([agent.state(), [r.__dict__ for r in agent.describe()]]))
        assert ends[0] == ends[1], which


def test_mixers_states_are_enough():
    check_mixers_states_are_enough()


@pytest.mark.parametrize("which", range(3))
def test_a_pool_that_grows_brings_its_labels_in(which):
    pool, rng = gapped_pool(), np.random.default_rng(2)
    columns = {
        "domain": (
            np.where(np.arange(len(pool)) % 5 == 0, 7, pool.codes("domain")).astype(np.uint16),
            (*pool.labels("domain"), "new"),
        )
    }
    longer = FakePool(pool.ids, pool.lengths, columns)
    agent = bound(mixers()[which], pool)

    def rounds(pool, labels):
        for round_ in range(5):
            agent.chosen(taken(pool, agent.mix, rng))
            agent.learn(probed(pool, rng.uniform(2, 5, labels), rng, {"task": 5.0 - 0.1 * round_}))

    rounds(pool, 7)
    before = agent.mix.copy()
    agent.rebind(longer)
    assert agent.mix.shape == (8,) and agent.mix.sum() == pytest.approx(1) and agent.mix[7] > 0 and agent.mix[2] == 0
    np.testing.assert_allclose((agent.mix[:7] / np.maximum(before, 1e-9))[[0, 1, 3]], agent.mix[0] / before[0])
    rounds(longer, 8)
    assert agent.mix.sum() == pytest.approx(1) and (agent.mix[agent.held] > 0).all()


def test_records_show_shares_and_losses():
    pool, rng = gapped_pool(), np.random.default_rng(0)
    agent = bound(OdmAgent("domain", INTERVAL, SMOOTHING), pool)
    losses = rng.uniform(1, 6, 7)
    agent.learn(probed(pool, losses, rng))
    for j, record in enumerate(agent.describe()):
        assert record.weight == agent.mix[j]
        assert record.reward_mean == (None if j == 2 else pytest.approx(losses[j], rel=1e-9)) and (record.probes > 0) == (j != 2)
    np.testing.assert_allclose(np.exp(agent.score(pool)), (agent.mix / np.maximum(agent.shares, 1e-9))[pool.codes("domain")])


def test_losses_are_taken_as_they_are():
    rewards = np.array([3.0, 5.0, 4.0])
    kept = scale_rewards(rewards, np.ones(3, int), np.ones(3), "none")
    assert kept.tolist() == rewards.tolist() and kept is not rewards
    with pytest.raises(ValueError, match="1 of 3 rewards are NaN"):
        scale_rewards(np.array([1.0, np.nan, 2.0]), np.ones(3), np.ones(3), "none")


def test_free_group_probes_need_the_references():
    pool, rng = random_pool(), np.random.default_rng(0)
    with pytest.raises(ValueError, match="agent 'domain' learns from the references' losses"):
        bound(AioliAgent("domain", **AIOLI), pool).learn(probed(pool, np.ones(7), rng))


def test_a_deviation_keeps_the_simplex():
    mix = deviated(np.array([0.01, 0.29, 0.7]), np.array([1.0, -1.0, 1.0]), 0.5)
    assert mix.sum() == pytest.approx(1) and mix[0] / mix[1] == pytest.approx(0.01 / 0.29 * math.e)
