"""Mutants of selections without rewards, of fixed weights and of the DSIR labeller; tests/mutants/mutants.py has the fields."""

import dataclasses
import inspect

import numpy as np
import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

from mads.console.collaborate import MultiplicativeCollaboration

STATIC, RANKS, DSIR = "unit/console/test_static.py", "dist/test_static_ranks.py", "unit/label/test_dsir.py"
LOOPS = f"{STATIC}:check_equal_to_loops"


def _all_parts(original):
    import json
    from pathlib import Path

    def texts(directory):
        files = sorted((Path(directory) / "references").glob("*.jsonl"))
        return {file.stem: [json.loads(line)["text"] for line in file.read_text().splitlines()] for file in files}

    return texts


MUTANTS = [
    Mutant(
        "the band is not held",
        "mads.console.column:BandCells.__getitem__",
        lambda original: lambda self, where: np.minimum(original(self, where), self.labels - 1),
        LOOPS,
        args=("band", "threshold"),
    ),
    Mutant(
        "the band's quantiles are of samples, not of tokens",
        "mads.console.column:token_quantiles",
        lambda original: lambda pool, attribute, levels: np.quantile(pool.values(attribute), levels, method="inverted_cdf"),
        LOOPS,
        args=("band", "gather"),
    ),
    Mutant(
        "small values are good ones as great values are",
        "mads.console.column:ColumnScore.score",
        lambda original: lambda self, values: original(dataclasses.replace(self, descending=True), values),
        LOOPS,
        args=("bottom_k", "gather"),
    ),
    Mutant(
        "in proportion to exp(value) instead of the value",
        "mads.console.column:ColumnScore.score",
        lambda original: lambda self, values: original(dataclasses.replace(self, logarithm=False), values),
        LOOPS,
        args=("proportional", "threshold"),
    ),
    Mutant(
        "used samples compete with unused ones by a column",
        "mads.console.static:TopKOrder",
        lambda original: lambda decay, fewer_uses_first: original(decay),
        LOOPS,
        args=("top_k", "gather"),
    ),
    Mutant(
        "every rank reads the column from the pool's start",
        "mads.console.column:Window",
        lambda original: lambda column, start, stop: original(column, 0, stop - start),
        f"{RANKS}:check_two_ranks",
        world=2,
        args=("top_k", "threshold"),
    ),
    Mutant(
        "shares of a mix are taken in the order in which they are given",
        "mads.console.choose:_by_name",
        lambda original: lambda recipe, pool: np.resize([*recipe.shares.values(), 0, 0, 0], len(pool.labels(recipe.strata[0]))),
        f"{STATIC}:check_mix_is_by_name",
    ),
    Mutant(
        "fixed weights learn",
        "mads.console.collaborate:FixedCollaboration.update",
        lambda original: lambda self, theta, rewards: MultiplicativeCollaboration(0.5, 0.0).update(theta, rewards),
        "unit/console/test_collaborate.py:check_fixed_stays",
    ),
    Mutant(
        "the target has the parts that judge",
        "mads.label.base:direction_texts",
        _all_parts,
        f"{DSIR}:check_only_the_direction_part_is_seen",
    ),
    Mutant(
        "n-grams are numbered anew in each batch's order",
        "mads.label.dsir:DSIRImportance._hashes",
        lambda original: lambda self, names: np.arange(len(names)) % self.buckets,
        f"{DSIR}:check_that_labels_do_not_depend_on_the_batch",
    ),
    Mutant(
        "importance weights are means over n-grams",
        "mads.label.dsir:DSIRImportance._values",
        lambda original: lambda self, documents: (setattr(self, "per_ngram", True), original(self, documents))[1],
        f"{DSIR}:check_against_dictionaries",
    ),
]


def run_mutated(name: str) -> str | None:
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_static_mutant_is_caught(mutant, tmp_path):
    if "folder" in inspect.signature(mutant.check_function()).parameters:
        mutant = dataclasses.replace(mutant, args=(tmp_path,))
    check_caught(mutant, run_mutated)


def test_static_names_are_unique():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
