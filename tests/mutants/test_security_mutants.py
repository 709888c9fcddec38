"""Mutants of the checks on files from others (docs/security.md). See mutants.py for the scheme."""

from pathlib import Path

import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

CHECKS = "unit/security/test_foreign_files.py:in_a_folder"
RED = ("AssertionError", "Failed")


def _any_name(original):
    """Joined as it is; links and kinds of files are still looked at."""
    return lambda folder, name: original(folder, name) if original.__globals__["is_plain"](name) else Path(folder) / str(name)


def _without_links(original):
    def inside(folder, name):
        try:
            return original(folder, name)
        except ValueError as error:
            if "symbolic link" in str(error):
                return Path(folder) / name
            raise

    return inside


def attacked(name, target, replace, check, red=RED):
    return Mutant(name, target, replace, CHECKS, args=(check,), red=red)


MUTANTS = [
    attacked("a name may climb", "mads.paths:is_plain", lambda original: lambda name: isinstance(name, str), "check_names"),
    attacked("links are followed", "mads.paths:Path.is_symlink", lambda original: lambda self: False, "check_links"),
    attacked(
        "pipes count as files",
        "mads.paths:stat.S_ISREG",
        lambda original: lambda mode: True,
        "check_links",
    ),
    attacked(
        "a checkpoint's manifest may name any file",
        "mads.checkpoint.manifest:is_plain",
        lambda o: lambda n: True,
        "check_checkpoint",
    ),
    attacked("a checkpoint's files may be links", "mads.checkpoint.manifest:inside", _without_links, "check_checkpoint"),
    attacked(
        "a checkpoint's other files are read too",
        "mads.checkpoint.canonical:_names",
        lambda original: lambda path: [file.name for file in path.iterdir()],
        "check_unnamed",
    ),
    attacked("a directory's manifest may name any file", "mads.data.schema:inside", _any_name, "check_prepared_names"),
    attacked("a directory's files may be links", "mads.data.schema:inside", _without_links, "check_prepared_links"),
    attacked(
        "a run writes through links",
        "mads.train.loop:refuse_run_links",
        lambda original: lambda folder: None,
        "check_run_links",
    ),
    attacked(
        "a directory is changed through links",
        "mads.data.schema:refuse_links",
        lambda original: lambda paths, remedy: None,
        "check_changed_links",
    ),
    attacked(
        "any callable is built",
        "mads.config.factory:_check_kind",
        lambda original: lambda target, where: None,
        "check_only_classes_of_the_kind",
    ),
    attacked(
        "values may name classes too",
        "mads.config.factory:_own_keys_of_hydra",
        lambda original: lambda value, where="": iter(()),
        "check_only_classes_of_the_kind",
    ),
]


def run_mutated(name: str) -> str | None:
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)


@pytest.mark.parametrize("check", sorted({m.args[0] for m in MUTANTS}))
def test_checks_are_green_where_nothing_is_broken(check):
    assert outcome(attacked("nothing", "mads.paths:inside", lambda same: same, check)) is None
