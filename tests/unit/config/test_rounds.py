"""How long rounds are, against a list of decisions written by hand."""

from itertools import accumulate

import pytest

from mads.config.rounds import round_steps
from mads.config.schema import SelectionConfig


@pytest.mark.parametrize(
    "interval, first, decisions",
    [
        (50, None, [50, 100, 150, 200]),
        (50, 50, [50, 100, 150, 200]),
        (50, 10, [10, 20, 40, 80, 130, 180, 230]),
        (139, 37, [37, 74, 148, 287, 426]),
        (7, 3, [3, 6, 12, 19, 26]),
    ],
)
def test_rounds_double_what_was_trained_up_to_the_interval(interval, first, decisions):
    selection = SelectionConfig("mads", interval, first)
    assert list(accumulate(round_steps(selection, r) for r in range(len(decisions)))) == decisions
    assert round_steps(selection, 10**4) == interval
