"""Mutants of the labellers, of a prepared directory's attributes and of its growth; tests/mutants/mutants.py has the fields."""

import dataclasses
import inspect

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import outcome

GIVEN, STATE, NGRAM = "unit/label/test_given_labels.py", "unit/label/test_labeller_state.py", "unit/label/test_ngram.py"
LIKENESS = "unit/label/test_likeness.py"
LABELLERS, RELABEL, WORDS = "unit/label/test_labellers.py", "unit/label/test_relabel.py", "unit/label/test_statistics.py"


def _scaled_by_the_batch(original):
    return lambda self, documents: original(self, documents) / (1 + 1e-3 * len(documents))


def _one_sample(row):
    return dataclasses.replace(row, first=np.arange(len(row.first)) == 0)


def _forgets_the_intercept(original):
    return lambda self: original(self) | {"intercept": np.array(0.0)}


MUTANTS = [
    Mutant(
        "labels that come later are sorted in",
        "mads.label.domain:_NamedDomain._add_labels",
        lambda original: lambda self, labels: self._set_names(sorted([*self._codes, *labels])),
        f"{STATE}:check_that_later_labels_stand_behind",
    ),
    Mutant(
        "a resumed run takes up what came later",
        "mads.train.growth:PoolHistory.shards_for",
        lambda original: lambda self, round_, *rest: original(type(self)(self.path.parent, []), round_, *rest),
        "unit/train/test_pool_history.py:check_rounds_get_the_pool_of_their_time_again",
    ),
    Mutant(
        "the last bin is open",
        "mads.label.given:bins_between",
        lambda original: lambda scores, edges: (np.searchsorted(np.asarray(edges), scores, side="right") - 1).astype(np.uint16),
        f"{GIVEN}:check_that_the_last_bin_is_closed",
    ),
    Mutant(
        "a label depends on its batch",
        "mads.label.ngram:NGramPerplexity._bits",
        _scaled_by_the_batch,
        f"{NGRAM}:check_that_labels_do_not_depend_on_the_batch",
    ),
    Mutant(
        "the state forgets the intercept",
        "mads.label.quality:QualityLabeller._arrays",
        _forgets_the_intercept,
        f"{STATE}:check_that_every_part_of_the_state_counts",
    ),
    Mutant(
        "documents of the sample know themselves",
        "mads.label.ngram:content_ids",
        lambda original: lambda documents: original(documents) + np.arange(1, len(documents) + 1, dtype=np.uint64),
        f"{NGRAM}:check_that_the_sample_is_scored_without_itself",
    ),
    Mutant(
        "samples of the pool's model know themselves",
        "mads.label.likeness:_Bigrams.probability",
        lambda original: lambda self, row, smoothing, own: original(self, row, smoothing, np.zeros_like(own)),
        f"{LIKENESS}:check_values_equal_plain_python",
    ),
    Mutant(
        "a short task is trusted as a long one",
        "mads.label.likeness:ReferenceLikeness._trust",
        lambda original: lambda self, texts: original(self, sum(self._tasks.values(), [])),
        f"{LIKENESS}:check_values_equal_plain_python",
    ),
    Mutant(
        "a sample begins with the end of the one before",
        "mads.label.likeness:_Row.of",
        lambda original: classmethod(lambda cls, samples: _one_sample(original.__func__(cls, samples))),
        f"{LIKENESS}:check_that_a_value_does_not_depend_on_the_batch",
    ),
    Mutant(
        "longer n-grams are pairs of one place too near",
        "mads.label.statistics:_pair",
        lambda original: lambda left, right, n, words: dataclasses.replace(original(left, right, n - 1, words), n=n),
        f"{WORDS}:check_statistics_equal_plain_python",
    ),
    Mutant(
        "new columns are written over the old ones",
        "mads.data.schema:AttributeSchema.folder",
        lambda original: property(lambda self: self.name),
        f"{RELABEL}:check_that_a_killed_run_leaves_a_fresh_directory_as_it_was",
        red=("AssertionError", "DataError"),  # what the old manifest names is no longer what it was
    ),
    Mutant(
        "the manifest goes first",
        "mads.label.relabel:_label_shards",
        lambda original: _manifest_first,
        f"{RELABEL}:check_that_a_killed_run_leaves_a_fresh_directory_as_it_was",
        red=("AssertionError", "DataError"),
    ),
]


def _manifest_first(prepared, labellers, schemas, workers):
    from mads.label.relabel import _commit, _label_shard

    kept = [schema for schema in prepared.manifest.attributes if schema.name not in schemas]
    _commit(prepared.directory, prepared.manifest, [*kept, *schemas.values()])
    shards = prepared.shards()
    return sum(_label_shard((prepared.directory, labellers, schemas, prepared.columns_of(*s), *s)) for s in shards)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # wrong counts make negative probabilities
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_label_mutant_is_caught(mutant, tmp_path):
    check = mutant.check_function()
    if inspect.signature(check).parameters:
        mutant = Mutant(mutant.name, mutant.target, mutant.replace, mutant.check, args=(tmp_path,), red=mutant.red)
    red = outcome(mutant)
    assert red is not None, f"{mutant.check} stayed green although {mutant.name}"
    assert any(kind in red.split(":")[0].split() for kind in mutant.red), red


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_check_is_green_without_it(mutant, tmp_path):
    check = mutant.check_function()
    assert check(*((tmp_path,) if inspect.signature(check).parameters else ())) is None
