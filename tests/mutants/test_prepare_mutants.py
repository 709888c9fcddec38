"""Mutants of the preparation by many processes; tests/mutants/mutants.py explains the fields."""

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import outcome

PROCESSES, READ_AGAIN = "unit/data/test_prepare_processes.py", "unit/data/test_read_again.py"


def _marked_as_done_at_the_begin(original):
    def start(self, task):
        from mads.data.prepare.board import write_json

        write_json(self.work / "done" / task, {"documents": 0, "bytes": 0})
        return original(self, task)

    return start


def _one_line_late(original):
    return property(lambda self: (original.fget(self)[0] + 1, original.fget(self)[1]) if original.fget(self)[1] else (0, 0))


MUTANTS = [
    Mutant(
        "a task is marked as done before it is",
        "mads.data.prepare.board:Board.start",
        _marked_as_done_at_the_begin,
        f"{PROCESSES}:check_an_interrupted_preparation_ends_with_the_same_bytes",
        red=("AssertionError", "Failed", "FileNotFoundError", "DataError"),
    ),
    Mutant(
        "documents that are read again are not compared",
        "mads.data.prepare.shards:text_keys",
        lambda original: lambda raw: (_AnyKey(original(raw)[0]), original(raw)[1]),
        f"{PROCESSES}:check_a_changed_source_is_an_error",
    ),
    Mutant(
        "an addition forgets what is trained on and what is held out",
        "mads.data.prepare.plan:known_keys",
        lambda original: lambda job, part: np.zeros((0, 2), np.uint64),
        f"{PROCESSES}:check_equal_texts_stay_on_their_side",
    ),
    Mutant(
        "reading goes on a line late",
        "mads.data.documents:Wanted.start",
        _one_line_late,
        f"{READ_AGAIN}:check_chosen_documents",
        args=("jsonl",),
    ),
]


class _AnyKey(int):
    """Equal to everything."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    __hash__ = int.__hash__


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_preparation_mutant_is_caught(mutant):
    mutant.check_function()
    red = outcome(mutant)
    assert red is not None, f"{mutant.check} stayed green although {mutant.name}"
    assert any(kind in red.split(":")[0].split() for kind in mutant.red), red
