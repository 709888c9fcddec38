"""Mutants of the hot loop: synchronisations, the check before the step, batches of one block. See mutants.py for the scheme."""

import pytest
import torch
from mutants import Mutant
from test_mutants import check_caught, outcome

COUNTS, ENGINE, BATCH = "unit/train/test_synchronisations.py", "dist/test_engine.py", "unit/data/test_batch.py"


def _norm_read_in_every_step(original):
    def train_step(self, *arguments):
        result = original(self, *arguments)
        return type(result)(result.loss, result.grad_norm)

    return train_step


def _targets_counted_on_the_device(original):
    def to(self, device):
        moved = original(self, device)
        assert moved.valid_tokens >= 0
        return moved

    return to


def _clipped_without_a_look(original):
    def clip(self, gradients, norm):
        torch._foreach_mul_(list(gradients.values()), min(1.0, self.grad_clip / (norm + 1e-6)))

    return clip


def _loss_not_looked_at(original):
    return lambda values: torch.nan_to_num(original(values))


MUTANTS = [
    Mutant(
        "the gradient norm is read in every step",
        "mads.train.engine:Engine.train_step",
        _norm_read_in_every_step,
        f"{COUNTS}:check_step",
        2,
        ([1], 1),
    ),
    Mutant(
        "targets are counted on the device",
        "mads.data.batch:PackedBatch.to",
        _targets_counted_on_the_device,
        f"{COUNTS}:check_step",
        2,
        ([0], 2),
    ),
    Mutant(
        "G4: a norm that is not finite is clipped as any other",
        "mads.train.engine:Engine._clip",
        _clipped_without_a_look,
        f"{ENGINE}:check_non_finite",
        2,
        ([0], "float32"),
    ),
    Mutant(
        "G4: a loss that is not finite passes where mads measures nothing else",
        "torch:stack",
        _loss_not_looked_at,
        f"{ENGINE}:check_non_finite",
        2,
        ([1], "float32"),
    ),
    Mutant(
        "a batch that was made from another keeps its block",
        "mads.data.batch:PackedBatch.block",
        lambda original: property(lambda self: original.fget(self) * 0),
        f"{BATCH}:check_block",
    ),
]


def run_mutated(name):
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)
