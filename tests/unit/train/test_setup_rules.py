"""Rules between the configuration and the prepared data, each broken once, before anything is built."""

import numpy as np
import pytest
from fake_pool import FakePool
from support import make_pool

from mads.config.compose import ConfigError, compose
from mads.config.validate import validate
from mads.train.setup import check_data, check_selection

LABELS = {"domain": ("news", "code", "books"), "quality": tuple("01234"), "topic": tuple("abcdefg"), "likeness": ("low", "high")}
BASE = [
    "data=jsonl",
    "data.paths=[a]",
    "data.seq_length=32",
    "model=nano",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("pool"), documents=80, labels=LABELS)


def config(*overrides):
    made = compose([*BASE, *overrides])
    validate(made)
    return made


def checked(pool, *overrides):
    check_data(config(*overrides), pool)
    check_selection(config(*overrides), pool)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["selection=random"],
        ["selection=stratified", "selection.attribute=topic"],
        ["selection=paper", "selection.probes_per_agent=7"],
        ["selection.probes=28"],  # 4 agents, 7 topics
        ["~agents.members.topic", "selection.probes=15"],
        ["data.seq_length=64"],
        ["selection=random", "selection.bounds.domain={news: [0.2, 0.5], books: [0, 0.5]}"],
        ["selection.bounds.domain={news: [0.2, 0.2], books: [0, 0.5], code: [0.1, 0.3]}"],
        ["selection.bounds.domain=0.25"],
        ["selection=random", "selection.unit=shard", "selection.max_uses=1"],
        ["selection=top_quality"],
        ["selection=quality_sampling", "selection.selector=proportional", "selection.temperature=null"],
        ["selection=mix", "selection.shares={news: 0.4, books: 2}"],
        ["selection=odm", "selection.probes=3"],
        ["selection=aioli", "selection.attribute=topic", "selection.floor=0.14"],
        ["agents=mates"],
    ],
)
def test_what_fits_passes(pool, overrides):
    assert checked(pool, *overrides) is None


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["data.seq_length=16"], r"data.seq_length=16, but .* samples of up to 32 tokens.*train with data.seq_length=32"),
        (["model.vocab_size=256"], r"has 300 pieces, more than model.vocab_size=256"),
        (["train.global_batch_size=4000"], r"takes 128000 tokens .* the whole pool has \d+"),
        (
            ["selection.probes=26"],
            r"selection.probes=26 leaves 6 probes for agents.members.topic, .*'topic' has 7 labels.*at least 28",
        ),
        (["selection.probes=15"], r"selection.probes=15 leaves 4 probes for agents.members.quality, .* 5 labels.*at least 28"),
        (
            ["selection=paper", "selection.probes_per_agent=6"],
            r"selection.probes_per_agent=6 leaves 6 probes for agents.members.topic, .* 7 labels .*at least 7",
        ),
        (["selection=ado", "selection.probes=2"], r"selection.probes=2, but 'domain' has 3 labels .* to at least 3"),
        (["selection=ado", "selection.floor=0.4"], r"selection.floor=0.4 for each of the 3 labels of 'domain' .* at most 0.333"),
        (
            ["selection=odm", "selection.attribute=mood", "data.attributes.mood._target_=x.Y"],
            r"selection.attribute='mood', but .* has only the attributes",
        ),
        (
            ["selection=stratified", "selection.attribute=mood", "data.attributes.mood._target_=x.Y"],
            r"selection.attribute='mood', but .* has only the attributes \['domain', 'likeness', 'quality', 'topic'\]",
        ),
        (
            ["selection.bounds.mood.a=[0,1]", "data.attributes.mood._target_=x.Y"],
            r"selection.bounds.mood='mood', but .* has only the attributes",
        ),
        (
            ["selection.bounds.domain.poems=[0,1]"],
            r"selection.bounds.domain names \['poems'\], but the labels are \['news', 'code'",
        ),
        (
            ["selection.bounds.domain={news: [0, 0.2], code: [0, 0.3], books: [0, 0.4]}"],
            r"selection.bounds.domain: the greatest shares of its 3 labels add up to 0.9",
        ),
        (
            ["selection=column", "selection.column=mood", "data.attributes.mood._target_=x.Y"],
            r"selection.column='mood', but .* has only the attributes",
        ),
        (["selection=column", "selection.column=topic"], r"selection.column='topic' of .* no continuous value.*\['quality'\]"),
        (
            ["selection=mix", "selection.shares={news: 1, poems: 1}"],
            r"selection.shares names \['poems'\], but the labels .*'news'",
        ),
        (
            ["agents.members.topic.attribute=mood", "data.attributes.mood._target_=x.Y"],
            r"agents.members.topic.attribute='mood', but .* has only the attributes",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_the_numbers_and_a_remedy(pool, overrides, words):
    with pytest.raises(ConfigError, match=words):
        checked(pool, *overrides)


def test_the_offered_number_of_probes_is_enough_for_the_draw(pool):
    from mads.reward.probes import SharedProbes, draw_probes

    attributes = {name: name for name in ("quality", "domain", "topic")}
    assert len(draw_probes(pool, SharedProbes(21), attributes, seed=0, round_=0).positions) > 0
    with pytest.raises(ValueError, match="6 probes for 7 labels"):
        draw_probes(pool, SharedProbes(20), attributes, seed=0, round_=0)


def test_values_and_shares_that_the_pool_cannot_give_are_counted_or_named():
    codes, labels = np.zeros(9, np.uint16), {"domain": ("news", "nowhere"), "quality": ("low", "high"), "topic": ("a",)}
    columns = {name: (codes, own) for name, own in labels.items()}
    few = FakePool(np.arange(9), np.full(9, 5), columns, {"quality": np.arange(9, dtype=np.float32) - 2})
    with pytest.raises(ConfigError, match=r"selection.shares gives shares to \['nowhere'\], of which .* holds no sample"):
        check_selection(config("selection=mix", "selection.shares={news: 1, nowhere: 1}"), few)
    with pytest.raises(ConfigError, match="positive values, but 3 of the 9 samples .* 'quality' of 0 or less"):
        check_selection(config("selection=column", "selection.selector=proportional"), few)
