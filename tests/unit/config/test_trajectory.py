"""What must be equal for a run to be continued, and what may change between two starts."""

import pytest
from omegaconf import OmegaConf

from mads.config.compose import RUN_INDEPENDENT, compose, differences, to_dict, trajectory


def flat(value, prefix=""):
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}.{key}" if prefix else key).items()}
    return {prefix: value}


def test_the_trajectory_is_all_leaves_but_the_independent_ones():
    config = compose([])
    leaves = flat(to_dict(config))
    left_out = set(leaves) - set(trajectory(config))
    independent = {k for k in leaves if any(k == p or k.startswith(p + ".") for p in RUN_INDEPENDENT)}
    assert left_out == independent - {"data.seq_length"}  # what else there is to know of the data says its fingerprint
    assert {k: v for k, v in leaves.items() if k not in left_out} == trajectory(config)
    assert {"optim.lr", "selection.interval", "train.steps", "train.global_batch_size", "data.seq_length"} <= set(
        trajectory(config)
    )


def test_every_independent_key_exists():
    config = compose(["train.stop_at=3"])  # None unless it is set
    assert [key for key in RUN_INDEPENDENT if OmegaConf.select(config, key) is None] == []


@pytest.mark.parametrize(
    "override, same",
    [
        ("run_dir=elsewhere", True),
        ("train.micro_batch_size=4", True),
        ("train.stop_at=200", True),
        ("parallel=zero3", True),
        ("checkpoint.interval=7", True),
        ("logging.project=other", True),
        ("data.dir=moved", True),
        ("data.max_megabytes=1", True),
        ("data.seq_length=64", False),
        ("train.log_interval=1", True),
        ("train.seed=1", False),
        ("train.global_batch_size=64", False),
        ("optim.lr=2e-3", False),
        ("selection.temperature=0.7", False),
        ("agents.members.topic.attribute=domain", False),
        ("reward=ghost", False),
        ("model.tie_embeddings=false", False),
    ],
)
def test_an_override_makes_a_difference_exactly_when_it_changes_the_run(override, same):
    ours, theirs = compose([]), compose([override])
    lines = differences(trajectory(theirs), trajectory(ours))
    assert (lines == []) == same


def test_differences_name_key_then_and_now():
    ours, theirs = {"a": 1, "b": 2, "new": None, "c": 5}, {"a": 1, "b": 3, "old": "x", "c": 5}
    assert differences(ours, theirs) == ["b: 3 then, 2 now", "old: 'x' then, None now"]
