"""Which way rewards are computed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mads.reward.influence import Rewarder, resolve_mode
from mads.reward.reference import ReferenceTask


@pytest.mark.parametrize(
    "mode, dtype, resolved",
    [
        ("auto", torch.float32, "finite_difference"),
        ("auto", torch.bfloat16, "ghost"),
        ("ghost", torch.float32, "ghost"),
        ("ghost", torch.bfloat16, "ghost"),
        ("finite_difference", torch.float32, "finite_difference"),
    ],
)
def test_auto_takes_the_finite_difference_where_parameters_are_fine_enough(mode, dtype, resolved):
    assert resolve_mode(mode, dtype) == resolved


def test_modes_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="needs fp32 parameters, these are torch.bfloat16; use reward=ghost"):
        resolve_mode("finite_difference", torch.bfloat16)
    with pytest.raises(ValueError, match="reward.mode='guess' is not one of auto, finite_difference, ghost"):
        resolve_mode("guess", torch.float32)


@pytest.mark.parametrize("mode, dtype, passes", [("finite_difference", torch.float32, 2), ("ghost", torch.bfloat16, 3)])
def test_flops_of_a_round_in_forward_passes(mode, dtype, passes):
    """A gradient is three forward passes; tests/unit/train/test_ghost.py counts those of a ghost product."""
    task = ReferenceTask("task", {"direction": [[np.zeros(20)], [np.zeros(30)]]})
    model, config = SimpleNamespace(parameter_dtype=dtype), SimpleNamespace(reference_examples=2)
    rewarder = Rewarder(model, [task], None, {}, 0.95, 1e-8, 64, 0, config, mode, flops_per_token=6)
    assert rewarder.flops([np.zeros(7), np.zeros(13)], 0) == pytest.approx(2 * (3 * 50 + passes * 20))
    assert rewarder.flops([np.zeros(7)], 0, references=False) == pytest.approx(2 * passes * 7)
