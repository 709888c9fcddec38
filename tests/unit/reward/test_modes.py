"""Which way rewards are computed."""

import pytest
import torch

from mads.reward.influence import resolve_mode


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
