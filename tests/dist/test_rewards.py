"""Rewards on a live engine: exact against per-sample gradients, equal over ZeRO stages and ranks, and without a trace."""

import numpy as np
import pytest
import torch
from harness import run_ranks

RATE = 2e-3
FULL = pytest.mark.full
DIFFERENCE, GHOST = "finite_difference", "ghost"


def _trained(stage, dtype=torch.float32, accumulation=1, steps=3):
    """An engine after a few steps on batches that do not depend on the number of ranks."""
    import model_support as support
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    built = support.make_engine(stage, dtype=dtype, accumulation=accumulation)
    for step in range(steps):
        micro, valid = support.micro_batches(support.global_batch(2 * world * accumulation, seed=step), rank, world)
        built.engine.train_step(micro, valid, RATE)
    return built


def check_exactness(stages, mode, dtype_name, correlation, steps, rows=3):
    import model_support as support
    import reward_cases as cases

    dtype = getattr(torch, dtype_name)
    samples = support.random_samples(13, seed=5)
    for stage in stages:
        built = _trained(stage, dtype, steps=steps)
        result = cases.rewarder(built, mode, rows)(None, samples, 0)
        weights, moments = (
            {n: built.engine.state.full(p, key) for n, p in built.engine.parameters} for key in ("weight", "exp_avg_sq")
        )
        expected, norm = cases.exact(built, weights, moments, samples)
        assert result.direction["norm"] == pytest.approx(norm, rel=1e-3 if dtype == torch.float32 else 0.1)
        assert sum(result.direction["shares"].values()) == pytest.approx(1.0)
        assert np.corrcoef(result.rewards, expected)[0, 1] > correlation, (stage, result.rewards, expected)
        if dtype == torch.float32:
            scale = np.abs(expected).max()
            np.testing.assert_allclose(
                result.rewards, expected, atol=(1e-4 if mode == "ghost" else 1e-2) * scale, err_msg=str(stage)
            )


@pytest.mark.parametrize("mode", ["finite_difference", "ghost"])
@pytest.mark.parametrize("world, steps", [pytest.param(1, 3, marks=FULL), (2, 0), pytest.param(2, 3, marks=FULL)])
def test_rewards_equal_exact_dot_products_in_fp32(mode, world, steps):
    # The finite difference subtracts two fp32 losses near 6: rounding leaves about 1e-4 of noise in rewards this small.
    run_ranks(world, check_exactness, [0, 1, 2, 3], mode, "float32", 0.999999 if mode == "ghost" else 0.9999, steps, timeout=180)


def test_a_rank_without_a_batch_of_its_own_adds_nothing():
    # 100 rows a batch: all references and all probes are one batch, and the second rank only keeps the first company.
    run_ranks(2, check_exactness, [1, 3], "ghost", "float32", 0.999999, 3, 100)


def check_the_step_and_the_plain_gradient():
    import model_support as support
    import reward_cases as cases

    samples, built = support.random_samples(13, seed=5), _trained(1)
    weights = {n: built.engine.state.full(p, "weight") for n, p in built.engine.parameters}
    moments = {n: built.engine.state.full(p, "exp_avg_sq") for n, p in built.engine.parameters}
    expected, norm = cases.exact(built, weights, moments, samples, plain=True)
    found = cases.rewarder(built, "ghost", preconditioner="none")(None, samples, 0)
    np.testing.assert_allclose(found.rewards, expected, atol=1e-4 * np.abs(expected).max())
    assert found.direction["norm"] == pytest.approx(norm, rel=1e-3) and "step_error" not in found.direction
    good, long, short = (cases.rewarder(built, "finite_difference", relative_step=e)(None, samples, 0) for e in (1e-4, 0.5, 1e-8))
    assert good.direction["step_error"] < 0.1 and good.notes == []
    for bad in (long, short):
        assert bad.direction["step_error"] > 0.1 and "set another reward.relative_step" in bad.notes[0]


def test_a_step_that_is_too_long_or_too_short_is_told_and_the_plain_gradient_is_a_choice():
    run_ranks(2, check_the_step_and_the_plain_gradient)


def test_rewards_equal_exact_dot_products_in_bf16():
    run_ranks(2, check_exactness, [0, 1, 2, 3], "ghost", "bfloat16", 0.98, 3, timeout=180)


def check_trace(stages, modes, accumulation, dtype_name="float32"):
    """Losses after a reward pass equal those of an undisturbed run bit for bit; parameters, moments, RNG and counters too.

    modes: how rewards are computed before each of two steps
    """
    import model_support as support
    import reward_cases as cases
    import torch.distributed as dist

    rank, world = dist.get_rank(), dist.get_world_size()
    dtype = getattr(torch, dtype_name)
    samples = support.random_samples(9, seed=5)
    rows = [support.global_batch(2 * world * accumulation, seed=20 + s) for s in range(2)]
    for stage in stages:
        runs = []
        for disturb in (False, True):
            torch.manual_seed(7)
            built = _trained(stage, dtype, accumulation)
            rng = torch.get_rng_state()
            losses = []
            for step, mode in enumerate(modes):
                if disturb:
                    before = _everything(built)
                    rewards = cases.rewarder(built, mode)(None, samples, step).rewards
                    assert np.abs(rewards).max() > 0
                    after = _everything(built)
                    assert all(torch.equal(before[k], after[k]) for k in before), (stage, mode)
                micro, valid = support.micro_batches(rows[step], rank, world)
                losses.append(built.engine.train_step(micro, valid, RATE).loss)
            assert torch.equal(rng, torch.get_rng_state())
            runs.append((losses, _everything(built)))
        assert runs[0][0] == runs[1][0], (stage, modes, accumulation)
        assert all(torch.equal(runs[0][1][k], runs[1][1][k]) for k in runs[0][1]), (stage, modes, accumulation)


def _everything(built):
    state = {}
    for n, p in built.engine.parameters:
        for key in ("weight", "exp_avg", "exp_avg_sq"):
            state[f"{key}/{n}"] = built.engine.state.full(p, key).clone()
    engine = built.engine.engine
    state["counters"] = torch.tensor([engine.global_steps, engine.micro_steps, engine.skipped_steps, built.engine.state.steps])
    return state


@pytest.mark.parametrize(
    "world, accumulation, modes",
    [
        (2, 2, (DIFFERENCE, GHOST)),
        *(
            pytest.param(world, accumulation, (mode, mode), marks=FULL)
            for world, accumulation in ((1, 2), (2, 1), (2, 2))
            for mode in (DIFFERENCE, GHOST)
        ),
    ],
)
def test_reward_pass_leaves_no_trace(world, accumulation, modes):
    run_ranks(world, check_trace, [0, 1, 2, 3], modes, accumulation, timeout=180)


def test_reward_pass_leaves_no_trace_in_bf16():
    run_ranks(2, check_trace, [0, 1, 2, 3], (GHOST, GHOST), 2, "bfloat16", timeout=180)


def check_refusals():
    import reward_cases as cases

    built = _trained(1, torch.bfloat16, steps=0)
    with pytest.raises(ValueError, match="reward=ghost"):
        cases.rewarder(built, "finite_difference")
    assert cases.rewarder(built, "auto").mode == "ghost"
    fp32 = _trained(1, steps=0)
    rewarder = cases.rewarder(fp32, "auto")
    assert rewarder.mode == "finite_difference"

    class Meddling(type(rewarder._model)):
        def sample_losses(self, batches):
            next(iter(self._engine.logical_names)).data.add_(1e-3)
            return super().sample_losses(batches)

    rewarder._model = Meddling(fp32.engine)
    saved_shift = rewarder._model.shifted
    from contextlib import nullcontext

    rewarder._model.shifted = lambda *a: nullcontext()  # nothing restores the weight that sample_losses changes
    assert saved_shift is not None
    import model_support as support

    with pytest.raises(RuntimeError, match="changed the model"):
        rewarder(None, support.random_samples(3), 0)


def test_finite_difference_is_refused_in_bf16_and_a_trace_is_an_error():
    run_ranks(1, check_refusals)


def _rewards_for(stage):
    import model_support as support
    import reward_cases as cases
    import torch.distributed as dist

    # Batches with the same global rows on any number of ranks.
    rank, world = dist.get_rank(), dist.get_world_size()
    built = support.make_engine(stage, accumulation=4 // (2 * world) or 1, overrides=[])
    for step in range(2):
        rows = support.global_batch(4, seed=step)
        micro, valid = support.micro_batches(rows, rank, world)
        built.engine.train_step(micro, valid, RATE)
    return cases.rewarder(built, "ghost")(None, support.random_samples(17, seed=5), 0).rewards.tolist()


def test_rewards_do_not_depend_on_the_number_of_ranks():
    one, two = run_ranks(1, _rewards_for, 1)[0], run_ranks(2, _rewards_for, 1)
    assert two[0] == two[1]  # every rank holds the same rewards, bit for bit
    np.testing.assert_allclose(one, two[0], atol=1e-4 * np.abs(one).max())
