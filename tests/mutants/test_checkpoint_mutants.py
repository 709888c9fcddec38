"""Mutants of checkpoints (K1, K2, K3, K4, K5). See mutants.py for the scheme."""

import json

import pytest
from mutants import Mutant
from test_mutants import check_caught, outcome

from mads.checkpoint.tensors import write_pieces
from mads.layout import Layout

SAVER, FILES, LAYOUTS = "unit/checkpoint/test_saver.py", "unit/checkpoint/test_canonical.py", "dist/test_checkpoint_layouts.py"


def _as_one_block(layout):
    return Layout(axis=layout.axis, padded_from=layout.padded_from)


def _padding_is_kept(original):
    return lambda pieces, layout: original(pieces, Layout(axis=layout.axis, parts=layout.parts))


def _not_copied(original):
    return lambda pieces, layout: pieces[0].detach() if len(pieces) == 1 else original(pieces, layout)


def _state_as_it_is_later(original):
    def add_small(writer, state, arrays):
        original(writer, state, arrays)
        writer.add("state.json", lambda path: write_pieces(path, [json.dumps(state).encode()]))

    return add_small


def _second_moments_from_the_first(original):
    def gather(engine, topology, parameter, key, owner):
        return original(engine, topology, parameter, "exp_avg" if key == "exp_avg_sq" else key, owner)

    return gather


def _the_next_ranks_shard(original):
    def read(stored, layout, shape, index, count):
        return original(stored, layout, shape, (index + 1) % count, count)

    return read


def _padding_from_the_last_row(original):
    def read(stored, layout, shape, index, count):
        piece = original(stored, layout, shape, index, count)
        if layout.padded_from is not None and index == count - 1:
            piece[-1] = piece[0]
        return piece

    return read


def _errors_are_swallowed(original):
    def write(self, *task):
        try:
            original(self, *task)
        except OSError:
            pass

    return write


def _unchecked(original):
    return lambda self, parts: {name: entry for part in parts for name, entry in part.get("files", {}).items()}


def pairs(name, target, replace, red=("AssertionError",)):
    return Mutant(name, target, replace, f"{LAYOUTS}:check_pairs", world=2, red=red)


def alone(name, target, replace, check, red=("AssertionError", "Failed")):
    return Mutant(name, target, replace, f"{SAVER}:check_alone", args=(check,), red=red)


MUTANTS = [
    pairs(
        "fused weights are put together as one block",
        "mads.checkpoint.tensors:unshard",
        lambda original: lambda pieces, layout: original(pieces, _as_one_block(layout)),
    ),
    pairs(
        "fused weights are read as one block",
        "mads.checkpoint.canonical:read_piece",
        lambda original: lambda stored, layout, *place: original(stored, _as_one_block(layout), *place),
    ),
    pairs("padding is not cut off", "mads.checkpoint.saver:assemble", _padding_is_kept),
    pairs("padding is filled with another row", "mads.checkpoint.canonical:read_piece", _padding_from_the_last_row),
    pairs("second moments are the first", "mads.checkpoint.saver:gather_pieces", _second_moments_from_the_first),
    pairs("a rank reads its neighbour's shard", "mads.checkpoint.canonical:read_piece", _the_next_ranks_shard),
    pairs(
        "moments are not loaded",
        "mads.train.optimizer_state:PartitionedState.load",
        lambda original: lambda self, p, key, value: original(self, p, key, value) if key == "weight" else None,
    ),
    Mutant(
        "a copy of a tied weight is saved as well",
        "mads.checkpoint.tensors:is_copy",
        lambda original: lambda parameter: False,
        f"{FILES}:check_copies_are_left_out",
    ),
    alone("the snapshot is not a copy", "mads.checkpoint.saver:assemble", _not_copied, "check_mutated_after_save"),
    alone(
        "the state is read when it is written",
        "mads.checkpoint.saver:_add_small",
        _state_as_it_is_later,
        "check_mutated_after_save",
    ),
    alone(
        "latest is moved before the files are there",
        "saver_support:SABOTAGE",
        lambda original: "pointer first",
        "check_killed_at_every_moment",
    ),
    alone("a writer's error is swallowed", "mads.checkpoint.writing:Writer._write", _errors_are_swallowed, "check_failed_save"),
    alone(
        "a failed save is not told to the ranks",
        "mads.checkpoint.saver:raise_together",
        lambda original: lambda *arguments: None,
        "check_failed_save",
    ),
    alone(
        "a save does not wait for the one before",
        "mads.checkpoint.saver:Saver.wait",
        lambda original: lambda self: None,
        "check_waits",
    ),
    Mutant(
        "a resume takes the newest checkpoint unverified",
        "mads.checkpoint.finding:verify",
        lambda original: lambda path: {},
        "unit/checkpoint/test_finding.py:check_alone",
    ),
    Mutant(
        "a damaged checkpoint keeps its name",
        "mads.checkpoint.finding:set_aside",
        lambda original: lambda root, found: None,
        "unit/checkpoint/test_finding.py:check_alone",
    ),
    alone("parts are published unchecked", "mads.checkpoint.writing:Publication._check", _unchecked, "check_parts"),
]


def run_mutated(name: str) -> str | None:
    return outcome(next(m for m in MUTANTS if m.name == name))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)


@pytest.mark.parametrize("check", ["check_mutated_after_save", "check_failed_save", "check_waits", "check_parts"])
def test_checks_are_green_where_nothing_is_broken(check):
    assert outcome(alone("nothing", "mads.checkpoint.saver:HURRY_S", lambda same: same, check)) is None
