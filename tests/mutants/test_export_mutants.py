"""Mutants of export and import: what transformers would take without a word. See mutants.py for the scheme."""

import dataclasses

import pytest
from mutants import Mutant
from test_mutants import outcome

EXPORT, FILES = "unit/export/test_export.py", "unit/export/test_tokenizer_files.py"
UNTIED = ["model.tie_embeddings=false", "model.rope_theta=500000", "model.norm_eps=1e-3"]
ALL_HEADS = ["model.num_key_value_heads=4"]


def _exchanged(first, second):
    """pieces() with the rows of two tensors of every layer exchanged."""

    def replace(original):
        def pieces(model):
            found = original(model)
            starts = {piece.theirs: piece.start for piece in found}
            other = lambda n: n.replace(first, "*").replace(second, first).replace("*", second)
            return [dataclasses.replace(p, start=starts[other(p.theirs)]) for p in found]

        return pieces

    return replace


def _config_with(**changes):
    def replace(original):
        return lambda *arguments: original(*arguments) | changes

    return replace


def _joined_backwards(original):
    def pieces(model):
        return original(model)[::-1]

    return pieces


def _merges_by_id(original):
    return lambda scores: sorted(original(scores), key=lambda pair: -len("".join(pair)))


def _logits(name, target, replace, overrides):
    return Mutant(name, target, replace, f"{EXPORT}:check_logits_anywhere", args=(tuple(overrides),))


MUTANTS = [
    _logits("k and v are exchanged", "mads.export.weights:pieces", _exchanged("k_proj", "v_proj"), ALL_HEADS),
    _logits("gate and up are exchanged", "mads.export.weights:pieces", _exchanged("gate_proj", "up_proj"), ALL_HEADS),
    _logits("q and k are exchanged", "mads.export.weights:pieces", _exchanged("q_proj", "k_proj"), ALL_HEADS),
    _logits(
        "theta is not told",
        "mads.export.command:llama_config",
        _config_with(rope_theta=10000.0, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        UNTIED,
    ),
    _logits("eps is not told", "mads.export.command:llama_config", _config_with(rms_norm_eps=1e-6), UNTIED),
    _logits("an untied head is called tied", "mads.export.command:llama_config", _config_with(tie_word_embeddings=True), UNTIED),
    Mutant(
        "k and q are joined the other way round",
        "mads.export.folder:pieces",
        _joined_backwards,
        "unit/export/test_import.py:check_round_trip_anywhere",
    ),
    Mutant(
        "a missing token is not told",
        "mads.export.command:llama_config",
        lambda original: lambda *arguments: {key: value for key, value in original(*arguments).items() if value is not None},
        "unit/export/test_export_shapes.py:check_special_ids_anywhere",
    ),
    Mutant("long pieces are merged first", "mads.export.tokenizer_json:merges", _merges_by_id, f"{FILES}:check_trained_anywhere"),
    Mutant(
        "a space is U+2581",
        "mads.export.tokenizer_json:spell",
        lambda original: lambda piece: piece,
        f"{FILES}:check_trained_anywhere",
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    red = outcome(mutant)
    assert red is not None, f"{mutant.check} stayed green although {mutant.name}"
    assert any(kind in red.split(":")[0].split() for kind in mutant.red), red
