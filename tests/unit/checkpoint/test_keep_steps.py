"""Checkpoints of steps that are to be kept stay, whatever comes later."""

import pytest

from mads.checkpoint.manifest import find_latest, name_of, prune, publish
from mads.config.compose import ConfigError, compose
from mads.config.validate import validate


@pytest.mark.parametrize(
    "keep_last, keep_steps, expected", [(1, (10, 30), [10, 30, 50]), (2, (), [40, 50]), (2, (50, 99), [40, 50])]
)
def test_kept_steps_stay(tmp_path, keep_last, keep_steps, expected):
    for step in (10, 20, 30, 40, 50):
        (tmp_path / "saving").mkdir()
        (tmp_path / "saving" / "file").write_text("x")
        publish(tmp_path, tmp_path / "saving", step)
        prune(tmp_path, keep_last, keep_steps)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == [name_of(step) for step in expected]
    assert find_latest(tmp_path).name == name_of(50)


def test_a_step_that_never_comes_is_refused():
    given = ["data=prepared", "data.dir=a", "train.steps=20", "schedule.warmup_steps=2"]
    validate(compose([*given, "checkpoint.keep_steps=[1,20]"]))
    with pytest.raises(ConfigError, match=r"checkpoint.keep_steps=\[5, 21\]: 21 is no step of train.steps=20"):
        validate(compose([*given, "checkpoint.keep_steps=[5,21]"]))
