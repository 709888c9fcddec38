"""Mutants of evaluation tasks and of groups that are held out together. See mutants.py for the scheme."""

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import outcome

TASKS, GROUPS = "unit/eval/test_tasks.py", "unit/data/test_split_groups.py"


def _first_choice(original):
    def text_of_record(record):
        return original(record | {"gold": 0} if "gold" in record else record)

    return text_of_record


def _windows_without_overlap(original):
    def windows_of(tokens, seq_length):
        windows = [tokens[i : i + seq_length] for i in range(0, len(tokens), seq_length)]
        return [w for w in windows if len(w) > 1]

    return windows_of


def _all_bytes_count(original):
    def predicted_bytes(text, first):
        return len(text.encode())

    return predicted_bytes


def _documents_one_by_one(original):
    def heldout_groups(keys, codes, groups, fraction, seed):
        return original(keys, codes, np.arange(len(keys)).astype(np.uint64), fraction, seed)

    return heldout_groups


MUTANTS = [
    Mutant(
        "a wrong choice is read",
        "mads.eval.tasks:text_of_record",
        _first_choice,
        f"{TASKS}:check_alone",
        args=("check_right_answers_alone_are_read",),
    ),
    *(
        Mutant(name, target, replace, f"{TASKS}:check_alone", args=("check_bits_are_those_of_a_loop_over_tokens",))
        for name, target, replace in (
            ("windows do not overlap", "mads.eval.tasks:windows_of", _windows_without_overlap),
            ("the first token's bytes count", "mads.eval.tasks:predicted_bytes", _all_bytes_count),
        )
    ),
    Mutant(
        "groups are torn apart",
        "test_split_groups:heldout_groups",
        _documents_one_by_one,
        f"{GROUPS}:check_groups_stay_together",
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    red = outcome(mutant)
    assert red is not None, f"{mutant.check} stayed green although {mutant.name}"
    assert any(kind in red.split(":")[0].split() for kind in mutant.red), red
