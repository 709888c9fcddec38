"""Bytes of weights, gradients and optimizer states against DeepSpeed's own estimators, and of rewards against a count."""

import functools
import weakref

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from torch.utils._python_dispatch import TorchDispatchMode

from mads.config.compose import compose
from mads.doctor.states import REWARD_VECTORS, model_states, reward_bytes
from mads.model.shape import parameter_count
from mads.reward.direction import make_direction, preconditioned

MODELS = ("paper_373m", "paper_1b3", "paper_3b6", "paper_8b")


@functools.cache
def parallel(*overrides):
    return compose(overrides).parallel


@functools.cache
def model_of(name):
    return compose([f"model={name}"]).model


def states(parameters, ranks, *overrides, largest=1, bf16=True):
    return model_states(parameters, largest, ranks, parallel(*overrides), bf16)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("nodes", [1, 4])
def test_zero2_is_deepspeeds_estimate_but_for_the_moment_that_is_looked_at(model, nodes):
    count, ranks = parameter_count(model_of(model)), 8 * nodes
    _, theirs = estimate_zero2_model_states_mem_needs(count, 8, nodes, cpu_offload=False)
    ours = states(count, ranks, "parallel=zero2")
    # DeepSpeed counts 2 + 18 / d bytes a parameter, a cut-up bf16 gradient beside the fp32 one among them. There is none when
    # the backward pass ends: it lies in the bucket, which is counted by itself (16 / d). In the step fp32 gradients are copied
    # once more (20 / d).
    assert ours.resident - theirs == pytest.approx(-2 * count / ranks, abs=64)
    assert ours.resident + ours.step - theirs == pytest.approx(2 * count / ranks, abs=64)
    assert abs(ours.resident / theirs - 1) < 0.06 and abs((ours.resident + ours.step) / theirs - 1) < 0.06
    host, offloaded = estimate_zero2_model_states_mem_needs(count, 8, nodes, cpu_offload=True, additional_buffer_factor=1.0)
    ours = states(count, ranks, "parallel=zero2", "parallel.offload_optimizer.device=cpu")
    assert ours.resident == pytest.approx(offloaded, abs=64)
    # Theirs is the float32 model on every rank, or 16 bytes a parameter of all; ours what this node's ranks keep: 18 / nodes.
    assert 8 * ours.host == pytest.approx(18 * count / nodes, rel=1e-6) and host >= 16 * count


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("nodes", [1, 4])
def test_zero3_is_deepspeeds_estimate_but_for_the_gathered_weights(model, nodes):
    config = model_of(model)
    count, largest, ranks = parameter_count(config), config.vocab_size * config.hidden_size, 8 * nodes
    _, theirs, layer = estimate_zero3_model_states_mem_needs(count, largest, 8, nodes, cpu_offload=False)
    ours = states(count, ranks, "parallel=zero3", largest=largest)
    assert ours.resident == pytest.approx(theirs - layer, abs=64)  # 18 / d: 2 + 4 + 12
    assert layer == 4 * largest and ours.gathered == 2 * min(count, 1_050_000_000)  # theirs: one layer and its gradient
    few = ("parallel.zero_options.stage3_max_live_parameters=1", "parallel.zero_options.stage3_prefetch_bucket_size=1")
    assert states(count, ranks, "parallel=zero3", *few, largest=largest).gathered == 2 * largest
    _, theirs, layer = estimate_zero3_model_states_mem_needs(count, largest, 8, nodes, cpu_offload=True, cpu_offload_params=True)
    away = ("parallel.offload_optimizer.device=cpu", "parallel.offload_param.device=cpu")
    assert states(count, ranks, "parallel=zero3", *away, largest=largest).resident == theirs - layer == 0


@pytest.mark.parametrize(
    "stage, bf16, resident, step",
    [
        (0, True, 2 + 2 + 12, 4),
        (1, True, 2 + 4 + 2 + 12 / 8, 4),
        (2, True, 2 + 4 / 8 + 12 / 8, 4 / 8),
        (3, True, 2 / 8 + 4 / 8 + 12 / 8, 4 / 8),
        (0, False, 4 + 4 + 8, 4),
        (1, False, 4 + 4 + 12 / 8, 4 / 8),
        (2, False, 4 + 4 / 8 + 12 / 8, 4 / 8),
        (3, False, 4 / 8 + 4 / 8 + 12 / 8, 4 / 8),
    ],
)
def test_bytes_a_parameter(stage, bf16, resident, step):
    count = 8_000_000
    ours = states(count, 8, f"parallel=zero{stage}", bf16=bf16)
    assert (ours.resident / count, ours.step / count) == (resident, step)
    assert (ours.buckets > 0) == (stage >= 2 or (stage == 1 and not bf16))


def test_options_of_zero_change_the_buckets():
    small = states(10**6, 4, "parallel=zero2", "parallel.zero_options.reduce_bucket_size=1000")
    double = states(
        10**6, 4, "parallel=zero2", "parallel.zero_options={reduce_bucket_size: 1000, overlap_comm: true}", largest=1000
    )
    assert (small.buckets, double.buckets) == (2000, 4000)
    assert states(10**6, 4, "parallel=zero2").buckets == 2 * 500_000_000


class _Peak(TorchDispatchMode):
    """The most bytes of storages that were alive at once, of those made inside."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self._known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage):
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key, size):
        self._known.discard(key)
        self.alive -= size


class _Reward:
    """The vectors of mads.reward.influence.Rewarder.direction, held as it holds them."""

    def __init__(self, shapes):
        self.shapes = shapes

    def direction(self):
        gradient = {n: torch.full(s, 0.5) for n, s in self.shapes.items()}
        sizes = {n: s[0] * s[1] for n, s in self.shapes.items()}
        totals = lambda sums: {n: float(v) for n, v in sums.items()}
        vector = preconditioned(gradient, lambda n: torch.full(self.shapes[n], 0.1), 3, sizes, 0.95, 1e-8, 0.3, totals)
        return make_direction(vector, totals)


def test_a_reward_direction_holds_so_many_vectors_at_once():
    shapes = {f"layers.{i}": (64, 500) for i in range(40)}
    count = 40 * 64 * 500
    with _Peak() as peak:
        _Reward(shapes).direction()
    assert reward_bytes(count, 8, 2) == 4 * REWARD_VECTORS * count == 8 * reward_bytes(count, 8, 3)
    assert peak.peak == pytest.approx(4 * REWARD_VECTORS * count, rel=0.2)
