"""N3: every file of conf/ composes and validates, and its keys are typed by mads/config/schema.py."""

import shutil
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from mads.config.compose import ConfigError, compose, to_dict, to_yaml
from mads.config.factory import build_all
from mads.config.parallel_rules import replica_size
from mads.config.store import register
from mads.config.validate import validate

CONF = Path(__file__).resolve().parents[3] / "conf"
APART = ("compare", "cluster")  # no part of a run
GROUPS = [path for path in CONF.rglob("*.yaml") if path.parent != CONF and path.parent.name not in APART]
CHOICES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in GROUPS)
OPEN = tuple(
    c for c in CHOICES if c.startswith("data/attributes/")
)  # any name -> labeller; the class that `_target_` names checks the keys below it


def overrides_for(choice: str) -> list[str]:
    """The override that picks a file, with what a user has to give besides."""
    group, name = choice.rsplit("/", 1)
    chosen = [f"{group}={name}"]
    if choice == "reward/finite_difference":
        chosen.append("train.precision=fp32")
    given = {
        "data/jsonl": ["data.paths=[corpus.jsonl]"],
        "data/files": ["data.paths=[corpus]"],
        "data/slimpajama_labeled": ["data.paths=[corpus]"],
        "data/megatron": ["data.paths=[tokens]", "data.tokenizer.path=tokenizer.model"],
        "data/prepared": ["data.dir=elsewhere"],
        "agents/perplexity": ["data/attributes=perplexity"],
        "agents/learnability": ["data/attributes=perplexity"],
        "selection/mix": ["++selection.shares={news: 0.4, books: 0.6}"],
        "selection/perplexity_filter": ["data/attributes=perplexity"],
        "selection/dsir": ["data/attributes=dsir"],
    }
    return chosen + given.get(choice, [])


def test_the_groups_are_all_there():
    groups = {choice.rsplit("/", 1)[0] for choice in CHOICES}
    assert groups >= {"model", "data", "agents", "selection", "reward", "parallel", "optim", "schedule", "logging", "experiment"}
    assert len(CHOICES) > 25


@pytest.mark.parametrize("choice", CHOICES)
def test_n3_every_file_composes_and_validates(choice):
    chosen = overrides_for(choice)
    config = compose(chosen)
    validate(config, replica_size(config.parallel), overrides=chosen)  # as many processes as one replica needs
    section = choice.split("/")[0]
    written = yaml.safe_load((CONF / f"{choice}.yaml").read_text())
    expected = {key: value for key, value in written.items() if key != "defaults" and not isinstance(value, (dict, str))}
    composed = to_dict(config) if section == "experiment" else to_dict(config)[section]
    for key, value in expected.items():  # the file's own values arrive; PyYAML reads 1e-3 as text, hence the float
        assert composed[key] == value or float(composed[key]) == float(value)
    assert yaml.safe_load(to_yaml(config)).keys() == to_dict(config).keys()


@pytest.mark.parametrize("experiment", [c for c in CHOICES if c.startswith("experiment/")])
def test_n3_an_experiment_sets_every_key_that_it_writes(experiment):
    config = to_dict(compose(overrides_for(experiment)))
    written = yaml.safe_load((CONF / f"{experiment}.yaml").read_text())
    written.pop("defaults")

    def same(ours, theirs, where):
        for key, value in theirs.items():
            if isinstance(value, dict):
                same(ours[key], value, f"{where}{key}.")
            else:
                expected = float(value) if isinstance(ours[key], float) else value
                assert ours[key] == expected, where + key

    same(config, written, "")
    for model in ("train", "optim", "selection"):
        assert model in written


@pytest.fixture
def conf_copy(tmp_path):
    """A copy of conf/ that a test may spoil, and a function that composes it."""
    copy = tmp_path / "conf"
    shutil.copytree(CONF, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def compose_copy(overrides):
        register()
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(copy), version_base="1.3"):
            return hydra_compose("config", overrides=overrides)

    return copy, compose_copy


@pytest.mark.parametrize("choice", [*(c for c in CHOICES if c not in OPEN), "config"])
def test_an_unknown_key_in_any_file_is_an_error(conf_copy, choice):
    copy, compose_copy = conf_copy
    overrides = [] if choice == "config" else overrides_for(choice)
    compose_copy(overrides)
    path = copy / f"{choice}.yaml"
    path.write_text(path.read_text() + "\nno_such_key: 1\n")
    with pytest.raises((HydraException, OmegaConfBaseException), match="no_such_key"):
        compose_copy(overrides)


def test_an_unknown_key_of_a_labeller_is_an_error_of_its_class():
    config = compose(["data.attributes.topic.no_such_key=1"])
    with pytest.raises(ConfigError, match="(?s)data.attributes.topic.*no_such_key"):
        build_all(config.data.attributes, "data.attributes")
    built = build_all(compose(["data.attributes.topic.topics=5"]).data.attributes, "data.attributes")
    assert list(built) == ["quality", "domain", "topic", "likeness"]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["optim.no_such_key=1"], "Key 'no_such_key' not in 'OptimConfig'"),
        (["+optim.no_such_key=1"], "optim.no_such_key is not a key"),
        (["++train.inner.no_such_key=1"], "train.inner is not a key"),
        (["+no_such_key=1"], "no_such_key is not a key"),
        (["no_such_group.key=1"], "Key 'no_such_group' not in 'RunConfig'"),
        (["~optim.lr"], "optim.lr"),
        (["optim.lr=fast"], "optim.lr.*'fast' of type 'str' could not be converted to Float"),
        (["train.steps=1.5"], "train.steps.*'1.5' of type 'float' could not be converted to Integer"),
        (["model=enormous"], "Could not find 'model/enormous'.*nano.*paper_8b"),
        (["experiment=nothing"], "Could not find 'experiment/nothing'.*paper_1b3"),
        (["selection=random", "selection.probes=8"], "Key 'probes' not in 'RandomSelectionConfig'"),
        (["reward=ghost", "reward.relative_step=1e-3"], "Key 'relative_step' not in 'GhostRewardConfig'"),
        (["data.paths=[a.jsonl]"], "Key 'paths' not in 'DemoDataConfig'"),
        (["optim.lr"], "optim.lr"),
    ],
)
def test_bad_overrides_name_the_key_and_the_way_out(overrides, words):
    with pytest.raises(ConfigError, match=f"(?s){words}") as caught:
        compose(overrides)
    assert str(caught.value).endswith("All keys and their values: mads train --cfg job")
    assert "append" not in str(caught.value)  # Hydra's hint at +key, which is refused as well


def test_open_fields_take_new_names_without_a_mark():
    config = compose(["agents.members.wit._target_=mads.agents.LabelAgent", "agents.members.wit.attribute=quality"])
    assert list(config.agents.members) == ["quality", "domain", "topic", "likeness", "wit"]
    config = compose(["data=jsonl", "data.paths=[a]", "data.reference_paths.cloze=cloze.jsonl"])
    assert config.data.references.paths == {"cloze": "cloze.jsonl"}
    assert "topic" not in compose(["~agents.members.topic"]).agents.members


def test_missing_values_are_named_by_validation():
    with pytest.raises(ConfigError, match=r"no value for: data\.paths.*for example data\.paths="):
        validate(compose(["data=jsonl"]))
    with pytest.raises(ConfigError, match=r"no value for: data.dir"):
        validate(compose(["data=prepared"]))


@pytest.mark.parametrize(
    "overrides, agents, reward",
    [
        ([], ["quality", "domain", "topic", "likeness"], "group"),
        (["selection=paper"], ["quality", "domain", "topic"], "auto"),
        (["selection=paper", "~agents.members.topic"], ["quality", "domain"], "auto"),
        (["selection=paper", "agents=default"], ["quality", "domain", "topic", "likeness"], "auto"),
        (["agents=paper", "reward=auto"], ["quality", "domain", "topic"], "auto"),
        (["experiment=paper_1b3"], ["quality", "domain", "topic"], "auto"),
    ],
)
def test_a_selection_brings_what_goes_with_it(overrides, agents, reward):
    config = compose(overrides)
    assert list(config.agents.members) == agents and config.reward.mode == reward
