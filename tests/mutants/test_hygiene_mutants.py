"""Mutants of duplicate and contamination search, and of the list of rejects; tests/mutants/mutants.py explains the fields."""

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import outcome

DUPLICATES, MINHASH = "unit/hygiene/test_duplicates.py", "unit/hygiene/test_minhash.py"
CONTAMINATION, REJECTS = "unit/hygiene/test_contamination.py", "unit/data/test_rejects.py"


def _the_later_one_stays(original):
    def join(parent, left, right):
        from mads.hygiene.duplicates import _roots

        while len(left):
            one, other = _roots(parent, left), _roots(parent, right)
            apart = one != other
            left, right = left[apart], right[apart]
            np.maximum.at(parent, np.minimum(one, other)[apart], np.maximum(one, other)[apart])

    return join


def _letters_as_they_are(original):
    return lambda: np.where(original() != 0, np.arange(len(original()), dtype=np.uint32), np.uint32(0))


MUTANTS = [
    Mutant(
        "of a cluster the last document stays",
        "mads.hygiene.duplicates:_join",
        _the_later_one_stays,
        f"{DUPLICATES}:check_the_first_in_input_order_stays",
    ),
    Mutant(
        "a shared band is enough",
        "mads.hygiene.duplicates:_equal_slots",
        lambda original: lambda stack, left, right: np.full(len(left), 128),
        f"{DUPLICATES}:check_clusters_are_those_of_all_pairs",
    ),
    Mutant(
        "only the first of a bucket is compared",
        "mads.hygiene.duplicates:_LEADERS",
        lambda original: 1,
        f"{DUPLICATES}:check_a_bucket_of_many_different_documents_is_compared_in_all_pairs",
    ),
    Mutant(
        "permutations that are no bijection",
        "mads.hygiene.minhash:_permutations",
        lambda original: lambda: (original()[0] & np.uint32(0xFFFFFFFE), original()[1]),
        f"{MINHASH}:check_slots_are_those_of_datasketch",
    ),
    Mutant(
        "signatures of single words",
        "mads.hygiene.minhash:NGRAM",
        lambda original: 1,
        f"{MINHASH}:check_estimates_are_within_their_deviation",
    ),
    Mutant(
        "twelve words are contamination",
        "mads.hygiene.contamination:NGRAM",
        lambda original: 12,
        f"{CONTAMINATION}:check_twelve_words_do_not_hit_and_thirteen_do",
    ),
    Mutant(
        "case hides an example",
        "mads.hygiene.words:_fold_table",
        _letters_as_they_are,
        f"{CONTAMINATION}:check_hits_are_those_of_sets_of_tuples",
    ),
    Mutant(
        "equal hashes are equal words",
        "mads.hygiene.contamination:words_of",
        lambda original: lambda *text: ["word"] * 1000,
        f"{CONTAMINATION}:check_a_collision_of_hashes_removes_nothing",
    ),
    Mutant(
        "every reject is an entry of its own",
        "mads.data.rejects:_Run.takes",
        lambda original: lambda self, *place: False,
        f"{REJECTS}:check_neighbours_with_one_reason_are_one_entry",
    ),
    Mutant(
        "an entry swallows lines that were accepted",
        "mads.data.rejects:_Run.takes",
        lambda original: (
            lambda self, reason, origin, line, detail: original(self, reason, origin, self.line + self.count, detail)
        ),
        f"{REJECTS}:check_neighbours_with_one_reason_are_one_entry",
    ),
    Mutant(
        "what is not listed is forgotten",
        "mads.data.rejects:Rejects._end_run",
        lambda original: lambda self: None if self._file[1] >= 4 and self._run and self._run.origin == "a" else original(self),
        f"{REJECTS}:check_no_file_lists_more_than_its_share",
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_hygiene_mutant_is_caught(mutant):
    mutant.check_function()
    red = outcome(mutant)
    assert red is not None, f"{mutant.check} stayed green although {mutant.name}"
    assert any(kind in red.split(":")[0].split() for kind in mutant.red), red
