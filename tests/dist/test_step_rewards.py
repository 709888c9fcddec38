"""Rewards that take real steps: equal to the same steps taken on a twin by hand, at ZeRO stages, on two ranks."""

import dataclasses

import numpy as np
import pytest
from harness import run_ranks

RATE = 2e-3


def _context(built):
    import reward_cases as cases

    from mads.reward.steps import RewardContext
    from mads.train.reward_model import EngineRewardModel

    return RewardContext(EngineRewardModel(built.engine), cases.references(), built.topology, 32, 0, 3, 1000)


def _trained(stage, steps=2):
    """Batches that do not depend on the number of ranks."""
    import model_support as support
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    built = support.make_engine(stage)
    for step in range(steps):
        micro, valid = support.micro_batches(support.global_batch(4, seed=step), rank, world)
        built.engine.train_step(micro, valid, RATE)
    return built


def _probes(count):
    from mads.reward.probes import Probes

    rng = np.random.default_rng(0)
    codes = {"domain": rng.integers(0, 3, count), "quality": rng.integers(0, 2, count)}
    members = {"domain": np.arange(count) % 2 == 0, "quality": np.arange(count) % 2 == 1}
    return Probes(np.arange(count) * 7, np.arange(count) * 7, np.ones(count), members, True, codes, {"domain": 3, "quality": 2})


def _losses(module, samples):
    """Summed token losses of single samples by the bare model."""
    import torch
    from model_cases import plain_losses

    from mads.data.batch import make_batch

    with torch.no_grad():
        batches = [make_batch([[sample]], 32) for sample in samples]
        return np.array([float(plain_losses(module, b).double().sum()) for b in batches])


def _by_hand(built, steps, forget):
    """The model after steps, each (samples, rate), from plain PyTorch on a copy: gradient of the mean loss, clipping, AdamW."""
    import torch
    from model_cases import plain_losses

    from mads.data.batch import make_batch
    from mads.layout import named_logical_parameters
    from mads.model.decoder import Decoder
    from mads.train.engine import adamw

    twin = Decoder(built.config.model)
    optimizer = adamw(twin, built.config.optim)
    own = dict(built.engine.parameters)
    with torch.no_grad():
        for name, p in named_logical_parameters(twin):
            p.copy_(built.engine.state.full(own[name], "weight"))
            moments = {key: built.engine.state.full(own[name], key).clone() for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"step": torch.tensor(float(built.engine.state.steps)), **moments}
            if forget:
                optimizer.state[p]["exp_avg"].zero_()
    for samples, rate in steps:
        batches = [make_batch([[sample]], 32) for sample in samples]
        total = sum(plain_losses(twin, b).sum() for b in batches)
        optimizer.zero_grad()
        (total / sum(len(s) - 1 for s in samples)).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), built.config.optim.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return twin


def _fill(samples, order, start):
    """(places of the next samples of a cyclic order that fit into a row of 32 tokens, each at most once; where it stopped)."""
    taken, held = [], 0
    while len(taken) < len(order):
        i = order[(start + len(taken)) % len(order)]
        if taken and held + len(samples[i]) > 32:
            break
        taken.append(i)
        held += len(samples[i])
    return taken, start + len(taken)


def check_displacement(stages):
    import model_support as support

    from mads.config.schema import DisplacementRewardConfig
    from mads.reward.displacement import DisplacementRewarder
    from mads.reward.steps import ReferenceBatches

    samples, found = support.random_samples(12, seed=5), []
    for stage in stages:
        built = _trained(stage)
        context = _context(built)
        before = context.model.digest()
        config = DisplacementRewardConfig(mode="displacement", steps=1, step_rows=2, rate_factor=0.5)
        result = DisplacementRewarder(context, config)(_probes(12), samples, 3, RATE)
        assert context.model.digest() == before
        batch = next(ReferenceBatches(context.references, 64, 0, 3))
        twin = _by_hand(built, [(batch, 0.5 * RATE)], forget=True)
        base = _by_hand(built, [(batch, 0.0)], forget=True)  # a rate of 0 leaves the weights
        targets = np.array([len(s) - 1 for s in samples])
        expected = (_losses(base, samples) - _losses(twin, samples)) / targets
        np.testing.assert_allclose(result.rewards, expected, atol=2e-5 * np.abs(expected).max() + 2e-6, err_msg=str(stage))
        assert np.abs(expected).max() > 1e-4
        found.append(result.rewards)
        more = DisplacementRewarder(context, dataclasses.replace(config, steps=3))(_probes(12), samples, 3, RATE)
        assert context.model.digest() == before and not np.allclose(more.rewards, result.rewards)


@pytest.mark.parametrize("world", [1, 2])
def test_a_displacement_is_the_loss_before_less_the_loss_after_steps_on_the_references(world):
    run_ranks(world, check_displacement, [0, 1, 3], timeout=180)


def check_groups(stages):
    import model_support as support

    from mads.config.schema import BlendRewardConfig, GroupRewardConfig
    from mads.reward.group import GroupRewarder
    from mads.reward.outcomes import fit_outcomes, winsorised
    from mads.reward.steps import ReferenceLoss

    samples, probes, mix = support.random_samples(12, seed=5), _probes(12), support.random_samples(9, seed=6)
    for stage in stages:
        built = _trained(stage)
        context = _context(built)
        before = context.model.digest()
        config = GroupRewardConfig(mode="group", steps=2, step_rows=1, mix_rows=1, control=1, reference_examples=4)
        rewarder = GroupRewarder(context, config)
        result = rewarder(probes, samples, 3, RATE, mix)
        assert context.model.digest() == before
        windows = [task.windows("direction", 4, 0, 3) for task in context.references]

        def reference_loss(module, windows=windows):
            return np.mean([_losses(module, w).sum() / sum(len(s) - 1 for s in w) for w in windows])

        gains, rows = [], {"domain": [], "quality": []}
        for order in rewarder._groups(probes, 3):
            taken, steps, start, mix_start = [], [], 0, 0
            for rate in (RATE, RATE / 2):  # falling by 1 / steps
                of_label, start = _fill(samples, order, start)
                of_mix, mix_start = _fill(mix, range(9), mix_start)
                steps.append(([samples[i] for i in of_label] + [mix[i] for i in of_mix], rate))
                taken += of_label
            held = sum(len(samples[i]) for i in taken)
            twin, base = _by_hand(built, steps, forget=False), _by_hand(built, [(samples, 0.0)], forget=False)
            gains.append(reference_loss(base) - reference_loss(twin))
            for agent, size in probes.sizes.items():
                share = np.zeros(size)
                for i in taken:
                    share[probes.codes[agent][i]] += len(samples[i]) / held
                rows[agent].append(share)
        assert all(len(result.errors[a]) == size and result.errors[a].max() > 0 for a, size in probes.sizes.items())
        assert len(gains) == 3 + 2 + 1 == result.direction["groups"]
        assert ReferenceLoss(context, "direction", 4, 3)() == pytest.approx(reference_loss(base), rel=1e-5)
        fit = fit_outcomes(winsorised(np.array(gains)), {a: np.array(r) for a, r in rows.items()}, probes.sizes)
        expected = sum(fit.effects[a][probes.codes[a]] for a in probes.sizes)
        assert np.corrcoef(result.rewards, expected)[0, 1] > 0.999, (stage, result.rewards, expected)
        if stage == 0:
            blend = BlendRewardConfig(mode="blend", steps=1, step_rows=1, control=1, reference_examples=4)
            import reward_cases as cases

            one_step = cases.rewarder(built, "finite_difference")
            mixed = GroupRewarder(context, blend, one_step)(probes, samples, 3, RATE)
            single = one_step(probes, samples, 3).rewards
            lengths = np.array([len(s) for s in samples])
            inside = mixed.rewards - mixed.direction["slope"] * (single - np.average(single, weights=lengths))
            design = np.concatenate([np.eye(s)[probes.codes[a]] for a, s in probes.sizes.items()], axis=1)
            left = inside - design @ np.linalg.lstsq(design, inside, rcond=None)[0]
            np.testing.assert_allclose(left, 0, atol=1e-9)  # what is left of a blend is a table of labels
            assert context.model.digest() == before


@pytest.mark.parametrize("world", [1, 2])
def test_group_probes_are_steps_on_each_labels_probes_judged_by_the_references(world):
    run_ranks(world, check_groups, [0, 1, 3], timeout=180)


def check_divergence(stage):
    """One group's first step throws the model out of the finite numbers, then all groups' do."""
    import model_support as support

    from mads.config.schema import GroupRewardConfig
    from mads.reward.group import GroupRewarder
    from mads.reward.steps import RewardContext

    class Shaken(RewardContext):
        taken = {"steps": 0, "diverging": [3]}

        def step(self, rehearsal, samples, rate):
            self.taken["steps"] += 1
            super().step(rehearsal, samples, 1e30 if self.taken["steps"] in self.taken["diverging"] else rate)

    built = _trained(stage)
    context = _context(built)
    shaken = Shaken(**{field.name: getattr(context, field.name) for field in dataclasses.fields(context)})
    before = context.model.digest()
    config = GroupRewardConfig(mode="group", steps=2, step_rows=1, control=1, reference_examples=4)
    samples, probes = support.random_samples(12, seed=5), _probes(12)
    result = GroupRewarder(shaken, config)(probes, samples, 3, RATE)
    assert shaken.taken["steps"] >= 11 and np.isfinite(result.rewards).all() and context.model.digest() == before
    assert result.notes == ["1 of 6 group probes were not finite and count as the worst of the others"]
    shaken.taken["diverging"] = range(100)
    with pytest.raises(ValueError, match="all 6 group probes .* reward.rate_factor"):
        GroupRewarder(shaken, config)(probes, samples, 3, RATE)
    assert context.model.digest() == before


@pytest.mark.parametrize("stage", [0, 3])
def test_groups_that_diverge_count_as_the_worst_and_leave_no_trace(stage):
    run_ranks(2, check_divergence, stage, timeout=120)
