"""A SentencePiece model as a tokenizer.json of the package `tokenizers`, with the same ids for every text.

Both merge the pair of greatest score first, the leftmost of equals. Where common conversions change ids, this one does not:

    spaces   They write a space as U+2581, so that a text's own U+2581 becomes a space. Here the pieces hold real spaces, and that
             character is spelled by its bytes, as mads.data.tokenizer does.
    merges   Only normal pieces are made by merging: the characters "<0x41>" in a text are not the byte piece of that name.
"""

from __future__ import annotations

from typing import Any

from sentencepiece import sentencepiece_model_pb2

_SPACE = "\u2581"
_KINDS = sentencepiece_model_pb2.ModelProto.SentencePiece
_SPECIAL = (_KINDS.UNKNOWN, _KINDS.CONTROL)


class NotConvertible(ValueError):
    """The model does something that has no equal in a tokenizer.json, as far as mads knows. The message says what."""


def read_proto(raw: bytes):
    """The parts of a SentencePiece model."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(raw)
    return proto


def special_pieces(proto) -> dict[str, int | None]:
    """ "unk", "bos", "eos" and "pad" -> id; None where the model has no such piece."""
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    spec = proto.trainer_spec
    names = {"unk": spec.unk_piece, "bos": spec.bos_piece, "eos": spec.eos_piece, "pad": spec.pad_piece}
    return {role: ids.get(name) for role, name in names.items()}


def special_ids(proto) -> frozenset[int]:
    """Ids of the pieces that are not text."""
    return frozenset(i for i, piece in enumerate(proto.pieces) if piece.type in _SPECIAL)


def convert(proto) -> dict[str, Any]:
    """The content of tokenizer.json.

    Raises:
        NotConvertible: the model is not byte-pair encoding of unchanged text.
    """
    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    kinds = {piece.type for piece in proto.pieces}
    reasons = {
        "it is no byte-pair encoding": spec.model_type != spec.BPE,
        "it changes characters before encoding": bool(normalizer.precompiled_charsmap),
        "it takes out white space": normalizer.remove_extra_whitespaces,
        "it does not write spaces as pieces": not normalizer.escape_whitespaces,
        "it puts spaces behind words": spec.treat_whitespace_as_suffix,
        "it has pieces that are switched off": _KINDS.UNUSED in kinds,
        "it has pieces that users defined": _KINDS.USER_DEFINED in kinds,
    }
    if found := [what for what, present in reasons.items() if present]:
        raise NotConvertible(", ".join(found))
    spelled = spell_with_prefix if normalizer.add_dummy_prefix else spell
    names = [spelled(p.piece) if p.type == _KINDS.NORMAL else p.piece for p in proto.pieces]
    unknown = next((p.piece for p in proto.pieces if p.type == _KINDS.UNKNOWN), None)
    added = [
        {"id": i, "content": p.piece, "special": True} | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, p in enumerate(proto.pieces)
        if p.type in _SPECIAL
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": _KINDS.BYTE in kinds,
        "ignore_merges": False,
        "vocab": {name: i for i, name in enumerate(names)},
        "merges": merges({n: p.score for n, p in zip(names, proto.pieces) if p.type == _KINDS.NORMAL}),
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _prefixing() if normalizer.add_dummy_prefix else None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": _decoders(normalizer.add_dummy_prefix)},
        "model": model,
    }


def spell(piece: str) -> str:
    """A piece of a model that puts no space before a text."""
    return piece.replace(_SPACE, " ")


def spell_with_prefix(piece: str) -> str:
    """A piece of a model that does, which cannot tell U+2581 from a space in any case."""
    return piece


def _prefixing() -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, replace]}


def _decoders(prefix: bool) -> list[dict[str, Any]]:
    inner: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if not prefix:
        return inner
    replace = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return [replace, *inner, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]


def merges(scores: dict[str, float]) -> list[list[str]]:
    """Every pair of pieces that makes a piece, the greatest score of the whole first. Of the pairs that make the same piece the
    one with the longer left side comes first: a run of one character has its longer pieces on the left."""
    found = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [[left, right] for _, _, left, right in sorted(found)]
