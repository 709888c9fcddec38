"""The tokenizer of a run as the files that `AutoTokenizer.from_pretrained` opens, held to mads' own on real text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mads.data.tokenizer import Tokenizer
from mads.export.tokenizer_json import NotConvertible, convert, read_proto, special_ids, special_pieces

BOS_NAMES = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", "[BOS]")  # Llama 3, Llama 2, Gemma, others
PROBES = (
    "a  b\t\tc\r\n\n  d e\u0301 \u00e9 \ufb01 \U0001f600 \x01 \ufeff\u2028\xa0 <s></s> \0end ",
    " a\u2581b \u2581\u2581",
    "1234567890 3.14 <0x41> \u4f60\u597d \u0645\u0631\u062d\u0628\u0627 \U0010ffff      ======== --------- aaaaaaa",
)


@dataclass(frozen=True)
class TokenizerFiles:
    """What is written of a tokenizer.

    files: name -> content; special: "bos", "eos" and "pad" -> id, or None; problem: why there is no tokenizer.json, or None.
    """

    files: dict[str, bytes]
    special: dict[str, int | None]
    problem: str | None


def tokenizer_files(file: Path, tokenizer: Tokenizer, seq_length: int, texts: Sequence[str]) -> TokenizerFiles:
    """The files for one tokenizer.

    Args:
        file: what it was opened from.
        texts: real ones, on which both tokenizers must agree beside PROBES; checked where the package `tokenizers` is.
    """
    raw, problem = file.read_bytes(), None
    files: dict[str, bytes] = {}
    if tokenizer.kind == "sentencepiece":
        files["tokenizer.model"] = raw
        proto = read_proto(raw)
        ids = special_pieces(proto)
        names = {role: proto.pieces[i].piece for role, i in ids.items() if i is not None}
        try:
            core = convert(proto)
        except NotConvertible as error:
            core, problem = None, str(error)
    else:
        core = _without_additions(json.loads(raw))
        ids, names = _given_special(core, tokenizer.eod)
    if core is not None:
        text = json.dumps(core, ensure_ascii=False, indent=1)
        problem = _difference(text, tokenizer, [*PROBES, *texts])
        if problem is None:
            files["tokenizer.json"] = text.encode()
            settings = _settings(names, seq_length)
            files["tokenizer_config.json"] = (json.dumps(settings, ensure_ascii=False, indent=1) + "\n").encode()
    return TokenizerFiles(files, {role: ids.get(role) for role in ("bos", "eos", "pad")}, problem)


@dataclass(frozen=True)
class SpecialTokens:
    """ids: of all of them, which are not text; bos: id, or None; eos_text: the name of the token that ends a document."""

    ids: frozenset[int]
    bos: int | None
    eos_text: str


def special_tokens(file: Path, tokenizer: Tokenizer) -> SpecialTokens:
    """Of a tokenizer that was opened from `file`; the same ones as in the exported files."""
    if tokenizer.kind == "sentencepiece":
        proto = read_proto(file.read_bytes())
        return SpecialTokens(special_ids(proto), special_pieces(proto)["bos"], proto.pieces[tokenizer.eod].piece)
    core = json.loads(file.read_bytes())
    ids, names = _given_special(core, tokenizer.eod)
    every = frozenset(token["id"] for token in core["added_tokens"] if token["special"])
    return SpecialTokens(every, ids.get("bos"), names["eos"])


def _settings(names: dict[str, str], seq_length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # the file as it is; the class of LLaMA would put its own rules in place
        **{f"{role}_token": name for role, name in names.items()},
        "add_bos_token": False,
        "add_eos_token": False,
        "split_special_tokens": True,  # "</s>" inside a document is text (HTML strikes words out with it), as in training
        "clean_up_tokenization_spaces": False,
        "model_max_length": seq_length,
    }


def _without_additions(core: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json that puts no special token around a text and neither cuts nor pads it: so the run read it."""
    core = core | {"truncation": None, "padding": None}
    processor = core.get("post_processor")
    steps = processor["processors"] if processor and processor["type"] == "Sequence" else [processor] if processor else []
    kept = [step for step in steps if step["type"] == "ByteLevel"]
    return core | {"post_processor": {"type": "Sequence", "processors": kept} if kept else None}


def _given_special(core: dict[str, Any], eod: int) -> tuple[dict[str, int | None], dict[str, str]]:
    special = {token["content"]: token["id"] for token in core.get("added_tokens", []) if token["special"]}
    names = {"eos": next(name for name, i in special.items() if i == eod)}
    if bos := next((name for name in BOS_NAMES if name in special), None):
        names["bos"] = bos
    ids: dict[str, int | None] = {role: special[name] for role, name in names.items()}
    if unknown := core["model"].get("unk_token"):
        names["unk"] = unknown
    return ids, names


def _difference(text: str, tokenizer: Tokenizer, texts: Sequence[str]) -> str | None:
    """What the file does otherwise than the run's own tokenizer; None if nothing, or if it cannot be tried here."""
    try:
        import tokenizers
    except ImportError:
        return None
    other = tokenizers.Tokenizer.from_str(text)
    other.encode_special_tokens = True
    ours = tokenizer.encode(texts)
    for given, ids, encoding in zip(texts, ours, other.encode_batch(list(texts), add_special_tokens=False)):
        if encoding.ids != ids.tolist():
            return f"its ids of {given[:60]!r} differ"
        if other.decode(encoding.ids, skip_special_tokens=False) != tokenizer.decode(ids):
            return f"it decodes {given[:60]!r} otherwise"
    return None
