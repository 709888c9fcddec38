"""Keys of a selection that go together: each rule broken once, and what is allowed passes."""

import pytest

from mads.config.compose import ConfigError, compose
from mads.config.validate import validate

FIXED = "selection.collaboration=fixed"
THREE = ["agents=paper", FIXED]
QUALITY = ["data.attributes.perplexity._target_=x.Y", "selection=perplexity_filter"]


def checked(overrides):
    config = compose(overrides)
    validate(config, overrides=overrides)
    return config.selection


@pytest.mark.parametrize(
    "overrides, key, value",
    [
        ([], "collaboration", "multiplicative"),
        (["selection=paper"], "collaboration", "additive"),
        (["selection=paper", "selection.collaboration=multiplicative", "selection.theta_floor=0.1"], "theta_floor", 0.1),
        (["selection.collaboration=additive", "selection.theta_rate=2"], "theta_rate", 2.0),
        ([FIXED], "theta", {}),
        (["agents=priors", "selection.selector=shares", "selection.share_floor=0"], "share_floor", 0.0),
        (["agents=priors", "agents.members.likeness.prior=0", "selection.share_floor=0"], "share_floor", 0.0),
        (
            [*THREE, "selection.theta={quality: 1, domain: 0, topic: 2}"],
            "theta",
            {"quality": 1.0, "domain": 0.0, "topic": 2.0},
        ),
        (
            [*THREE, "selection.theta.quality=1", "~agents.members.topic", "~agents.members.domain"],
            "theta",
            {"quality": 1.0},
        ),
        (["selection.selector=top_k"], "selector", "top_k"),
        (["selection.selector=proportional"], "selector", "proportional"),
        (["selection=quality_sampling", "selection.descending=false"], "descending", False),
        (["selection=quality_sampling", "selection.selector=top_k", "selection.temperature=null"], "temperature", None),
        (["selection=top_quality", "selection.band=[0.1,1]"], "band", [0.1, 1.0]),
        (["selection=column", "selection.unit=shard"], "selector", "top_k"),
        (["selection=mix", "selection.attribute=topic", "selection.shares.a=1"], "shares", {"a": 1.0}),
        (QUALITY, "band", [0.25, 0.75]),
    ],
)
def test_what_goes_together_passes(overrides, key, value):
    assert checked(overrides)[key] == value


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["selection.collaboration=vote"], ["selection.collaboration='vote'", "multiplicative, additive, fixed"]),
        (["selection.selector=random"], ["selection.selector='random'", "gumbel, top_k, proportional"]),
        (["selection=column", "selection.selector=best"], ["selection.selector='best'", "proportional, random"]),
        ([FIXED, "selection.theta_rate=0.5"], ["selection.theta_rate=0.5", "fixed", "multiplicative or additive"]),
        ([FIXED, "selection.theta_floor=0.05"], ["selection.theta_floor=0.05", "choose multiplicative"]),
        (["selection.collaboration=additive", "selection.theta_floor=0.1"], ["theta_floor=0.1", "additive"]),
        (["selection=paper", "selection.theta_floor=0.05"], ["theta_floor=0.05", "additive", "choose multiplicative"]),
        (["selection.theta.quality=1"], ["selection.theta={'quality': 1.0}", "multiplicative", "choose fixed"]),
        (
            [FIXED, "selection.theta={quality: 1}"],
            ["selection.theta names ['quality']", "['domain', 'likeness', 'quality', "],
        ),
        ([*THREE, "selection.theta={quality: 1, domain: -1, topic: 1}"], ["selection.theta=", "not negative"]),
        ([*THREE, "selection.theta={quality: 0, domain: 0, topic: 0}"], ["selection.theta=", "not all 0"]),
        (
            ["selection.selector=top_k", "selection.temperature=0.5"],
            ["selection.temperature=0.5", "choose auto or shares or gumbel"],
        ),
        (
            ["agents=priors", "selection.share_floor=0"],
            ["selection.share_floor=0.0", "gumbel with agents.members.likeness.prior", "set selection.selector=shares"],
        ),
        (
            ["selection.share_floor=0", "selection.bounds.domain.a=[0,1]"],
            ["selection.share_floor=0.0", "gumbel with selection.bounds, which does not use it; leave it out"],
        ),
        (["selection=top_quality", "selection.temperature=1"], ["selection.temperature=1.0", "choose gumbel"]),
        (["selection=column", "selection.selector=gumbel"], ["selector=gumbel needs selection.temperature"]),
        (["selection=column", "selection.selector=random"], ["selection.selector=random", "selection.band"]),
        ([*QUALITY, "selection.descending=true"], ["selection.descending=True", "random does not use it"]),
        (["selection=column", "selection.column=mood"], ["selection.column='mood'", "'quality'"]),
        (["selection=column", "selection.band=[0.5,0.5]"], ["selection.band=[0.5, 0.5]", "0 <= low < high <= 1"]),
        (["selection=column", "selection.band=[0.5]"], ["selection.band=[0.5]", "two quantiles"]),
        (["selection=column", "selection.band=[0,0.5]", "selection.unit=shard"], ["selection.band", "selection.unit=sample"]),
        (["selection=column", "agents=novelty"], ["agents=novelty: selection=column uses neither"]),
        (["selection=mix"], ["selection=mix needs shares of domain"]),
        (["selection=mix", "selection.shares.news=-1"], ["selection.shares={'news': -1.0}", "not negative"]),
        (["selection=mix", "selection.shares.news=0"], ["selection.shares={'news': 0.0}", "not all 0"]),
        (["selection=mix", "selection.shares.news=nan"], ["selection.shares={'news': nan}"]),
        (["selection=mix", "selection.shares.a=1", "selection.attribute=mood"], ["selection.attribute='mood'"]),
        (["selection=mix", "selection.shares.a=1", "selection.unit=shard"], ["selection=mix fixes", "unit=sample"]),
        (["selection=mix", "selection.shares.a=1", "selection.bounds.domain.a=[0,1]"], ["selection=mix has fixed shares"]),
    ],
)
def test_what_does_not_is_named_with_its_remedy(overrides, words):
    with pytest.raises(ConfigError) as caught:
        checked(overrides)
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(str(caught.value).splitlines()) == 1  # only this rule


def test_an_ignored_key_in_a_file_is_found_by_its_value():
    config = compose(["selection=paper"])
    config.selection.theta_floor = 0.2
    with pytest.raises(ConfigError, match="selection.theta_floor=0.2: selection.collaboration=additive does not use it"):
        validate(config)


@pytest.mark.parametrize("bad, words", [("selection.shares.news=many", "many"), ("selection.theta.quality=much", "much")])
def test_weights_that_are_no_numbers_are_refused_by_their_type(bad, words):
    with pytest.raises(ConfigError, match=words):
        compose([*(["selection=mix"] if "shares" in bad else []), bad])
