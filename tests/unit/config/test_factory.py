"""The factory's errors name the node, the class and the wrong word."""

import pytest

from mads.agents import LabelAgent
from mads.config.compose import ConfigError, compose
from mads.config.factory import build, build_all

AGENT = "mads.agents.LabelAgent"


def test_the_named_class_is_built_with_its_keys_and_extra_arguments():
    agent = build(compose([]).agents.members.topic, "agents.members.topic", name="topic")
    assert type(agent) is LabelAgent and (agent.name, agent.attribute) == ("topic", "topic")


def test_entries_are_built_in_the_order_of_the_configuration():
    nodes = {name: {"_target_": AGENT, "attribute": f"of {name}"} for name in ("zeta", "alpha", "mid")}
    built = build_all(nodes, "agents.members")
    assert [(n, agent.attribute) for n, agent in built.items()] == [(n, f"of {n}") for n in ("zeta", "alpha", "mid")]


@pytest.mark.parametrize(
    "node, words",
    [
        ({"attribute": "topic"}, "agents.members.x has no _target_"),
        ({"_target_": "mads.agents.NoSuchAgent"}, "agents.members.x.*mads.agents.NoSuchAgent"),
        ({"_target_": "no_such_package.Agent"}, "agents.members.x.*no_such_package"),
        ({"_target_": AGENT, "attribut": "topic"}, "agents.members.x.*attribut"),
        ({"_target_": AGENT}, "agents.members.x.*attribute"),
    ],
)
def test_a_node_that_cannot_be_built_is_named(node, words):
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        build(node, "agents.members.x", name="x")
