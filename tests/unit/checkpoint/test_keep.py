"""Keep policies: the newest checkpoints, those of listed steps, those at multiples of a number of steps."""

import pytest

from mads.checkpoint.finding import find_latest
from mads.checkpoint.manifest import Keep, name_of, prune, publish
from mads.config.compose import ConfigError, compose
from mads.config.validate import validate


def check_keep(root, keep, expected):
    """What stays of steps 10, 20, ... 60 when each save prunes."""
    for step in (10, 20, 30, 40, 50, 60):
        (root / "saving").mkdir(parents=True)
        (root / "saving" / "file").write_text("x")
        publish(root, root / "saving", step)
        prune(root, keep)
    assert sorted(p.name for p in root.glob("step-*")) == [name_of(step) for step in expected]
    assert find_latest(root).name == name_of(60)


CASES = [
    (Keep(1, (10, 30)), [10, 30, 60]),
    (Keep(2), [50, 60]),
    (Keep(2, (50, 99)), [50, 60]),
    (Keep(1, every=20), [20, 40, 60]),
    (Keep(2, every=30), [30, 50, 60]),
    (Keep(1, (10,), 30), [10, 30, 60]),
    (Keep(1, every=70), [60]),
    (Keep(9, every=60), [10, 20, 30, 40, 50, 60]),
]


@pytest.mark.parametrize("keep, expected", CASES)
def test_kept_checkpoints_stay(tmp_path, keep, expected):
    check_keep(tmp_path, keep, expected)


GIVEN = ["data=prepared", "data.dir=a", "train.steps=20", "schedule.warmup_steps=2"]


def test_a_step_that_never_comes_is_refused():
    validate(compose([*GIVEN, "checkpoint.keep_steps=[1,20]"]))
    with pytest.raises(ConfigError, match=r"checkpoint.keep_steps=\[5, 21\]: 21 is no step of train.steps=20"):
        validate(compose([*GIVEN, "checkpoint.keep_steps=[5,21]"]))


@pytest.mark.parametrize("interval, every", [(4, 6), (0, 4), (4, 2), (4, -4)])
def test_a_distance_at_which_nothing_is_saved_is_refused(interval, every):
    validate(compose([*GIVEN, "checkpoint.interval=4", "checkpoint.keep_every=8"]))
    with pytest.raises(ConfigError, match=f"checkpoint.keep_every={every}"):
        validate(compose([*GIVEN, f"checkpoint.interval={interval}", f"checkpoint.keep_every={every}"]))
