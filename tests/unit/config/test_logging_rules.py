"""Rules of the group `logging`: a profile inside of the run, packages that are there, keys that are used."""

import importlib.util

import pytest

from mads.config.compose import ConfigError, compose
from mads.config.validate import validate


def refused(*overrides):
    with pytest.raises(ConfigError) as caught:
        validate(compose(overrides), 1, False, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "profile, more, words",
    [
        ("{start: 9, steps: 3}", ["train.steps=10", "schedule.warmup_steps=2"], "reaches step 11, the run ends at step 10"),
        ("{start: 9, steps: 3}", ["train.stop_at=10"], "reaches step 11, the run ends at step 10"),
        ("{start: 0, steps: 3}", [], "logging.profile.start=0 must be at least 1"),
        ("{start: 3, steps: 0}", [], "logging.profile.steps=0 must be at least 1"),
        ("{start: 3, ranks: [0, 1]}", [], "ranks=[0, 1] must be different ranks of 0 to 0"),
        ("{start: 3, ranks: []}", [], "at least one"),
        ("{start: 3, ranks: [0, 0]}", [], "must be different"),
        ("{start: 3, ranks: [-1]}", [], "must be different ranks of 0 to 0"),
        ("{ranks: [0]}", [], "without logging.profile.start nothing is profiled"),
        ("{steps: 3}", [], "without logging.profile.start nothing is profiled"),
    ],
)
def test_a_profile_outside_of_the_run_is_refused(profile, more, words):
    assert words in refused(f"logging.profile={profile}", *more)


@pytest.mark.parametrize("profile, word", [("{start: 1, step: 3}", "step"), ("{start: soon}", "soon"), ("3", "3")])
def test_a_profile_of_another_form_is_refused(profile, word):
    with pytest.raises(ConfigError, match=f"(?s)profile.*{word}|{word}.*profile"):
        compose([f"logging.profile={profile}"])


def test_the_last_steps_of_a_run_can_be_profiled_and_it_is_off_by_default():
    assert compose([]).logging.profile.start is None
    config = compose(["logging.profile={start: 8, steps: 3}", "train.steps=10", "schedule.warmup_steps=2"])
    validate(config)
    assert (config.logging.profile.start, config.logging.profile.steps) == (8, 3)
    assert compose(["logging.profile={start: 8}"]).logging.profile.steps == 5


def test_tensorboard_without_its_package_is_refused_before_any_process(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else find(name))
    assert "pip install 'mads[tensorboard]'" in refused("logging=tensorboard")
    validate(compose([]))


def test_a_wandb_project_without_wandb_is_refused():
    assert "logging.project=mine: logging.wandb=disabled does not use it" in refused("logging.project=mine")
    overrides = ["logging=wandb_offline", "logging.project=mine"]
    validate(compose(overrides), 1, False, overrides)
