"""Mutants of the harness's adapter: what would give other numbers without a word. See mutants.py for the scheme."""

from types import SimpleNamespace

import pytest
from mutants import Mutant
from test_mutants import outcome

CHECK = "unit/train/test_harness_command.py:check_numbers_anywhere"
ADAPTER = "mads.train.harness:DecoderLM"


def _shifted(original):
    """Each position's logits are those of the one before."""
    return lambda self, rows: original(self, rows).roll(1, 1)


def _first_window_only(original):
    first = lambda *arguments, **settings: list(original.get_rolling_token_windows(*arguments, **settings))[:1]
    return SimpleNamespace(get_rolling_token_windows=first, make_disjoint_window=original.make_disjoint_window)


MUTANTS = [
    Mutant("logits are one position late", f"{ADAPTER}._logits", _shifted, CHECK),
    Mutant("a text's end stands before its beginning", f"{ADAPTER}.prefix_token_id", lambda o: property(lambda self: 2), CHECK),
    Mutant("a long text ends with its first window", "mads.train.harness:utils", _first_window_only, CHECK),
    Mutant("stop words stay", "mads.train.harness:_cut", lambda original: lambda text, stops: text, CHECK),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    red = outcome(mutant)
    assert red is not None, f"{mutant.check} stayed green although {mutant.name}"
    assert any(kind in red.split(":")[0].split() for kind in mutant.red), red
