"""Every rule of mads/config/validate.py, broken once: the message names the key and the numbers."""

import functools
import math

import pytest
from omegaconf import OmegaConf

from mads.config.compose import ConfigError, compose
from mads.config.validate import CHOICES, RANGES, precision_of, validate

# Key -> overrides under which it exists.
WHERE = {
    "data.hygiene.near_duplicates": ["data.hygiene.near_duplicates=0.8"],
    "data.max_megabytes": ["data=demo"],
    "selection.probes_per_agent": ["selection=paper"],
    "selection.use_decay": ["selection=paper"],
    "selection.shares": ["selection=stratified"],
    "selection.max_uses": ["selection.max_uses=2"],
    "selection.smoothing": ["selection=odm"],
    "selection.credit_rate": ["selection=ado"],
    "selection.credit_power": ["selection=ado"],
    "selection.preference_rate": ["selection=ado"],
    "selection.law_rounds": ["selection=ado"],
    "selection.floor": ["selection=aioli"],
    "selection.deviation": ["selection=aioli"],
    "selection.mix_rate": ["selection=aioli"],
    "selection.decay": ["selection=aioli"],
    "selection.ridge": ["selection=aioli"],
    "reward.relative_step": ["reward=finite_difference"],
    "reward.damping": ["reward=auto"],
    "reward.preconditioner": ["reward=auto"],
    **{f"reward.{key}": ["reward=displacement"] for key in ("steps", "step_rows", "rate_factor")},
    **{f"reward.{key}": ["reward=group"] for key in ("control", "mix_rows")},
    "selection.first_interval": ["selection.first_interval=3"],
    "train.stop_at": ["train.stop_at=3"],
    "logging.profile.start": ["logging.profile={start: 2, steps: 3}"],
    "logging.profile.steps": ["logging.profile={start: 2, steps: 3}"],
    "schedule.min_ratio": ["schedule=wsd"],
    "schedule.decay_fraction": ["schedule=wsd"],
}


@functools.cache
def composed(*overrides):
    """Composed once; callers copy before they change it."""
    return compose(overrides)


def refusal(overrides, world=1, has_gpu=False):
    with pytest.raises(ConfigError) as caught:
        validate(compose(overrides), world, has_gpu, overrides)
    return str(caught.value)


def outside(key):
    """Values just outside of a key's interval, and its bounds where they do not belong to it."""
    low, high = (float(bound) for bound in RANGES[key][1:-1].split(","))
    step = 1 if float(low).is_integer() and RANGES[key][0] == "[" else 0.5
    values = [low - step] + ([low] if RANGES[key][0] == "(" else [])
    if math.isfinite(high):
        values += [high + 0.5] + ([high] if RANGES[key][-1] == ")" else [])
    return values


@pytest.mark.parametrize("key", sorted(RANGES))
def test_values_outside_of_their_range_are_named(key):
    base = composed(*WHERE.get(key, []))
    validate(base)
    value = OmegaConf.select(base, key)
    assert value is not None, f"{key} is a key of no configuration"
    for bad in outside(key):
        config = base.copy()
        OmegaConf.update(config, key, type(value)(bad))
        with pytest.raises(ConfigError, match=f"{key}={type(value)(bad)} must"):
            validate(config)
    if isinstance(value, float):
        config = base.copy()
        OmegaConf.update(config, key, math.nan)
        with pytest.raises(ConfigError, match=f"{key}=nan must"):
            validate(config)


def test_every_number_of_the_configuration_has_a_range():
    without = {"data.seed", "train.seed"}  # any whole number
    elsewhere = {"data.min_sample_tokens", "parallel.zero_stage"}  # held by a rule of their own

    def numbers(node, prefix=""):
        for key in node:
            value, name = OmegaConf.select(node, key), f"{prefix}{key}"
            if OmegaConf.is_dict(value):
                if name not in ("data.source", "data.attributes", "data.references", "agents.members"):
                    yield from numbers(value, f"{name}.")
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                yield name

    for extra in ([], *WHERE.values(), ["selection=random"], ["schedule=constant"]):
        assert set(numbers(composed(*extra))) <= set(RANGES) | without | elsewhere


@pytest.mark.parametrize("key", sorted(CHOICES))
def test_values_that_are_no_choice_are_named_with_the_choices(key):
    bad = 7 if isinstance(CHOICES[key][0], int) else "odd"
    message = refusal([*WHERE.get(key, []), f"{key}={bad}"])
    assert f"{key}={bad!r} is not one of {', '.join(map(str, CHOICES[key]))}" in message


@pytest.mark.parametrize(
    "overrides, world, has_gpu, words",
    [
        (["selection.name=paper"], 1, False, ["selection.name='paper'", "selection=random|stratified|column|mix|paper|mads"]),
        (
            ["reward.mode=guess"],
            1,
            False,
            ["reward.mode='guess'", "reward=auto|finite_difference|ghost|displacement|group|blend"],
        ),
        (["schedule.name=wsd"], 1, False, ["schedule.name='wsd'", "schedule=constant|cosine|wsd"]),
        (["model.num_attention_heads=6"], 1, False, ["model.hidden_size=128", "model.num_attention_heads=6"]),
        (["model.hidden_size=36", "model.num_attention_heads=4"], 1, False, ["head dimension 9 is odd"]),
        (["model.num_key_value_heads=3"], 1, False, ["model.num_attention_heads=4", "model.num_key_value_heads=3"]),
        (["train.global_batch_size=20"], 2, False, ["train.global_batch_size=20", "2 ranks x 8", "16 rows", "multiple of 16"]),
        (["data.min_sample_tokens=1"], 1, False, ["data.min_sample_tokens=1", "data.seq_length=128"]),
        (["data.min_sample_tokens=129"], 1, False, ["data.min_sample_tokens=129", "data.seq_length=128"]),
        (["train.steps=20"], 1, False, ["schedule.warmup_steps=20", "train.steps=20"]),
        (["reward=finite_difference", "train.precision=bf16"], 1, False, ["reward=finite_difference", "reward=ghost"]),
        (["reward=finite_difference"], 1, True, ["reward=finite_difference needs fp32"]),
        (
            ["parallel=zero3", "parallel.offload_optimizer={device: nvme, nvme_path: disk}"],
            1,
            False,
            ["reward=group takes steps and undoes them", "not with offload to nvme", "device=cpu", "reward=auto"],
        ),
        (["model.attention=flash"], 1, False, ["model.attention=flash needs a GPU"]),
        (["data.tokenizer.kind=huggingface"], 1, False, ["data.tokenizer.path", "tokenizer.json"]),
        (
            ["selection=stratified", "selection.attribute=mood"],
            1,
            False,
            ["selection.attribute='mood'", "['domain', 'likeness', 'quality', 't"],
        ),
        (["agents.members.topic.attribute=mood"], 1, False, ["agents.members.topic.attribute='mood'", "'quality'"]),
        ([f"~agents.members.{name}" for name in ("topic", "domain", "quality", "likeness")], 1, False, ["at least one agent"]),
        (["selection.first_interval=51"], 1, False, ["selection.first_interval=51", "selection.interval=50", "warmup_rounds"]),
        (
            ["selection.agent_update=mean", "selection.agent_rate=1.5"],
            1,
            False,
            ["selection.agent_rate=1.5", "at most 1", "selection.agent_update=exponentiated"],
        ),
        (["train.stop_at=301"], 1, False, ["train.stop_at=301", "train.steps=300"]),
        (["selection=odm", "selection.first_interval=10"], 1, False, ["selection=odm counts rounds", "selection.interval=50"]),
        (["selection=paper", "selection.agent_rate=2"], 1, False, ["selection.agent_rate=2", "at most 1"]),
        (["selection.probes=2"], 1, False, ["selection.probes=2", "4 agents"]),
        (["selection.theta_floor=0.4"], 1, False, ["selection.theta_floor=0.4", "4 agents", "at most 0.25"]),
        (
            ["selection=random", "agents.members.topic.attribute=domain"],
            1,
            False,
            ["agents.members.topic", "selection=random uses"],
        ),
        (["selection.exchange=post"], 1, False, ["selection.exchange='post'", "auto, gather, threshold"]),
        (["selection.unit=row"], 1, False, ["selection.unit='row'", "sample, shard"]),
        (["selection=stratified", "selection.unit=shard"], 1, False, ["selection=stratified fixes", "selection.unit=sample"]),
        (["selection.unit=shard", "selection.exchange=gather"], 1, False, ["selection.unit=shard", "exchange at auto"]),
        (["selection.unit=shard", "selection.bounds.domain.a=[0,1]"], 1, False, ["selection.bounds hold for single samples"]),
        (["selection=stratified", "selection.bounds.domain.a=[0,1]"], 1, False, ["selection=stratified has fixed shares"]),
        (["selection.bounds={domain: {a: [0,1]}, topic: {b: [0,1]}}"], 1, False, ["names 2 attributes, ['domain', 'topic']"]),
        (["selection.bounds.mood.a=[0,1]"], 1, False, ["selection.bounds.mood is not one of", "'quality'"]),
        (["selection.bounds.domain.a=[0.5,0.2]"], 1, False, ["selection.bounds.domain: {'a': [0.5, 0.2]}", "0 <= least"]),
        (["selection.bounds.domain=1.5"], 1, False, ["selection.bounds.domain=1.5", "from 0 to 1", "{label: [least, most]}"]),
        (["selection.bounds.domain.a=half"], 1, False, ["selection.bounds.domain: {'a': 'half'}", "pairs"]),
        (["selection.bounds.domain.a=[0.5]"], 1, False, ["selection.bounds.domain: {'a': [0.5]}", "pairs"]),
        (["selection.bounds.domain={a: [0.5,1], b: [0.6,1]}"], 1, False, ["the least shares add up to 1.1, more than 1"]),
        (["selection=random", "reward=ghost"], 1, False, ["reward=ghost: selection=random uses neither"]),
        (["reward=ghost", "reward.preconditioner=none", "reward.damping=0.1"], 1, False, ["reward.damping=0.1: reward.precond"]),
        (["selection=stratified", "reward.damping=0.1"], 1, False, ["reward.damping=0.1: selection=stratified"]),
        (["selection=random", "~agents.members.topic"], 1, False, ["~agents.members.topic: selection=random"]),
        (["selection=odm", "agents=joint"], 1, False, ["agents=joint: selection=odm uses", "but reward.rows_per_batch;"]),
        (["selection=ado", "reward=ghost"], 1, False, ["reward=ghost: selection=ado uses neither agents nor rewards but"]),
        (["selection=ado", "reward.reference_examples=8"], 1, False, ["reward.reference_examples=8: selection=ado"]),
        (
            ["selection=aioli", "reward.damping=0.1"],
            1,
            False,
            ["rewards but reward.rows_per_batch and reward.reference_examples"],
        ),
        (["selection=ado", "selection.attribute=mood"], 1, False, ["selection.attribute='mood'", "'quality'"]),
        (["selection=aioli", "selection.bounds.domain.a=[0,1]"], 1, False, ["selection=aioli has fixed shares already"]),
        (["selection=odm", "selection.unit=shard"], 1, False, ["selection=odm fixes the shares of single samples' labels"]),
    ],
)
def test_every_rule_between_keys_names_them_and_their_numbers(overrides, world, has_gpu, words):
    message = refusal(overrides, world, has_gpu)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) == 1  # only this rule


def test_all_violations_come_at_once_one_a_line():
    message = refusal(["train.steps=0", "optim.lr=-1", "model.num_key_value_heads=0"])
    lines = message.splitlines()
    assert len(lines) == 4 and lines[0].startswith("model.num_key_value_heads=0") and "schedule.warmup_steps" in lines[-1]


def test_precision_is_bf16_on_a_gpu_unless_told_otherwise():
    assert [precision_of(compose([f"train.precision={p}"]), gpu) for p in ("auto", "fp32", "bf16") for gpu in (False, True)] == [
        "fp32", "bf16", "fp32", "fp32", "bf16", "bf16",
    ]  # fmt: skip


def test_a_valid_configuration_passes_at_several_sizes():
    config = compose([])
    assert [validate(config, world) for world in (1, 2, 4)] == [None] * 3
