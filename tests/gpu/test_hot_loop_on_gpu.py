"""Batches on their way to one GPU, and a model that never makes the host wait for it."""

import numpy as np
import pytest
import torch
from model_cases import fields, small_config

from mads.data.batch import make_batch
from mads.model import Decoder


@pytest.fixture
def no_waiting():
    """Inside, an operation that makes the host wait for the device is an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


def batch():
    rng = np.random.default_rng(0)
    return make_batch([[rng.integers(0, 131, 20), rng.integers(0, 131, 30)], [rng.integers(0, 131, 60)]], 64)


@pytest.mark.gpu
def test_a_pinned_batch_arrives_whole_without_a_wait(no_waiting):
    device = torch.device("cuda", torch.cuda.current_device())
    pinned = batch().pinned(device)
    assert pinned.tokens.is_pinned() and pinned.labels.is_pinned()
    moved = pinned.to(device)
    torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(fields(moved), fields(batch())):
        assert torch.equal(ours.cpu(), theirs)
    assert moved.tokens.device == moved.labels.device == moved.positions.device == device
    assert moved.segments.device.type == "cpu"


@pytest.mark.gpu
def test_forward_and_backward_do_not_wait(no_waiting):
    torch.cuda.set_sync_debug_mode("default")
    model, moved = Decoder(small_config()).cuda(), batch().to("cuda")
    model(*fields(moved))[0].backward()  # kernels are loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    model(*fields(moved))[0].backward()
