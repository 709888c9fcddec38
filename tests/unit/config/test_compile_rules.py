"""What train.compile is refused with, before any process starts."""

import pytest
from model_support import config

from mads.config.compose import ConfigError, trajectory
from mads.config.validate import validate


def problems(*overrides, world=1):
    try:
        validate(config("train.compile=true", "data.dir=none", "run_dir=none", *overrides), world, False, overrides)
    except ConfigError as error:
        return str(error)
    return ""


def test_it_is_off_unless_asked_for_and_goes_with_zero_0_to_2():
    assert not config().train.compile
    for stage in (0, 1, 2):
        assert problems(f"parallel=zero{stage}") == ""


def test_a_run_may_go_on_with_or_without_it():
    assert trajectory(config("data.dir=d", "run_dir=r")) == trajectory(config("data.dir=d", "run_dir=r", "train.compile=true"))


@pytest.mark.parametrize(
    "override, world, reason",
    [
        ("parallel.zero_stage=3", 1, "gathers weights by hooks"),
        ("parallel.pipeline_model_parallel_size=2", 2, "not verified on pipeline stages"),
        ("parallel.tensor_model_parallel_size=2", 2, "every collective"),
        ("parallel.context_parallel_size=2", 2, "every collective"),
        ("parallel.activation_checkpointing=full", 1, "computes again"),
        ("parallel.activation_checkpointing=selective", 1, "computes again"),
        ("model.hidden_dropout=0.1", 1, "anew in every step"),
        ("model.attention_dropout=0.1", 1, "anew in every step"),
    ],
)
def test_what_it_excludes_is_refused_with_the_reason_and_a_remedy(override, world, reason):
    told = problems(override, world=world)
    assert f"train.compile=true with {override}" in told and reason in told and "use train.compile=false" in told
    assert len(told.splitlines()) == 1
