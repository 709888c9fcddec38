"""A folder of LlamaForCausalLM, of transformers or of `mads export`, as start weights: config.json and safetensors, nothing that
could run code. Names and shapes are checked when it is opened, tensors are read by rows when they are asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mads.checkpoint.streamed import CODES, Stored, stored_tensors
from mads.data.schema import DataError, Manifest, sha256_of
from mads.export.llama import logical_shapes, model_settings, pieces
from mads.export.weights import INDEX

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SURPLUS = (".rotary_emb.inv_freq",)  # of old versions; it follows from rope_theta


class Joined:
    """Tensors one below the other, [sum of rows, ...], read as one: what mads.checkpoint.tensors.read_piece takes."""

    def __init__(self, tensors: Sequence[Stored]):
        self._tensors = tensors

    def get_shape(self) -> list[int]:
        return [sum(tensor.shape[0] for tensor in self._tensors), *self._tensors[0].shape[1:]]

    def __getitem__(self, index: slice | tuple[slice, ...]) -> torch.Tensor:
        """In float32, whatever the files hold."""
        rows, *others = index if isinstance(index, tuple) else (index,)
        start, stop, _ = rows.indices(self.get_shape()[0])
        found, at = [], 0
        for tensor in self._tensors:
            first, last = max(start, at) - at, min(stop, at + tensor.shape[0]) - at
            if first < last:
                found.append(tensor.part((slice(first, last), *others)).to(torch.float32))
            at += tensor.shape[0]
        return found[0] if len(found) == 1 else torch.cat(found)


@dataclass(frozen=True)
class LlamaFolder:
    """settings: the keys of mads.config.schema.ModelConfig that it determines; weights: the decoder's name -> its tensor."""

    path: Path
    settings: dict[str, Any]
    weights: dict[str, Joined]

    @classmethod
    def open(cls, path: str | Path) -> LlamaFolder:
        """Read config.json and the headers of the files.

        Raises:
            DataError: something is missing, damaged, of another shape, or not in the decoder.
        """
        path = Path(path)
        config = _json(path / "config.json", f"{path} is no folder of a model")
        settings = model_settings(config, f"{path / 'config.json'}")
        model = _Model(settings)
        held, wanted = _files(path), pieces(model)
        known = {piece.theirs for piece in wanted} | ({"lm_head.weight"} if model.tie_embeddings else set())
        if missing := [piece.theirs for piece in wanted if piece.theirs not in held]:
            raise DataError(f"{path} lacks {len(missing)} tensors of the model in its config.json: {', '.join(missing[:3])}")
        if surplus := sorted(name for name in held if name not in known and not name.endswith(SURPLUS)):
            raise DataError(f"{path} has tensors that the decoder does not have: {', '.join(surplus[:3])}")
        parts: dict[str, list[Stored]] = {name: [] for name in logical_shapes(model)}
        for piece in wanted:
            tensor = held[piece.theirs]
            if tensor.shape != piece.shape:
                raise DataError(f"{tensor.file}: {piece.theirs} has shape {tensor.shape}, by config.json it is {piece.shape}")
            if tensor.dtype not in CODES.values():
                raise DataError(
                    f"{tensor.file}: {piece.theirs} is stored as {tensor.dtype}; {', '.join(CODES.values())} can be read"
                )
            parts[piece.ours].append(tensor)
        return cls(path, settings, {name: Joined(tensors) for name, tensors in parts.items()})

    def differences(self, model) -> list[str]:
        """The overrides that turn `model` (the fields of mads.config.schema.ModelConfig) into this folder's."""
        return [f"model.{key}={_plain(value)}" for key, value in self.settings.items() if getattr(model, key) != value]


class _Model:
    """Settings as attributes."""

    def __init__(self, settings: dict[str, Any]):
        vars(self).update(settings)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _json(path: Path, otherwise: str) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{otherwise}: there is no {path.name}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object")
    return value


def _files(path: Path) -> dict[str, Stored]:
    """Name -> tensor, of the files that the index names, or of model.safetensors."""
    whole = path / "model.safetensors"
    if (path / INDEX).is_file():
        placed = _json(path / INDEX, f"{path}").get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
            raise DataError(f"{path / INDEX} has no weight_map of names")
        for name in sorted(set(placed.values())):
            if Path(name).name != name:
                raise DataError(f"{path / INDEX} names a file outside of its folder: {name!r}")
            if not (path / name).is_file():
                raise DataError(f"{path / name} is missing, but {INDEX} names it")
        held = {tensor.name: tensor for name in sorted(set(placed.values())) for tensor in stored_tensors(path / name)}
        if wrong := [name for name, file in placed.items() if name not in held or held[name].file.name != file]:
            raise DataError(f"{path / INDEX} has {wrong[0]} in {placed[wrong[0]]}, where it is not")
        return held
    if whole.is_file():
        return {tensor.name: tensor for tensor in stored_tensors(whole)}
    if found := [file.name for kind in PICKLES for file in sorted(path.glob(kind))]:
        raise DataError(
            f"{path} has its weights in {found[0]}, a pickle, which can run code when it is opened; mads reads safetensors only: "
            "have transformers save the model again"
        )
    raise DataError(f"{path} has neither model.safetensors nor {INDEX}")


def tokenizer_problem(folder: Path, data_dir: Path) -> tuple[str | None, str | None]:
    """(why the data cannot be for this model, or None; what could not be compared, or None): tokens mean nothing to a model that
    was trained on other ids.

    Raises:
        DataError: data_dir is no prepared directory, or a file of the folder is damaged.
    """
    manifest = Manifest.read(data_dir)
    record, theirs = manifest.tokenizer, folder / manifest.tokenizer["file"]
    if not theirs.is_file():
        return None, f"{folder} has no {theirs.name}, so its tokenizer was not compared with that of {data_dir}"
    same = sha256_of(theirs) == manifest.files[record["file"]]["sha256"]
    if not same and record["kind"] == "huggingface":
        same = _ids(theirs) == _ids(data_dir / record["file"])
    remedy = f"prepare the data with data.tokenizer.kind={record['kind']} data.tokenizer.path={theirs}"
    return None if same else f"the tokenizer of {data_dir} is not that of {folder}; {remedy}", None


def _ids(path: Path) -> tuple[Any, Any, dict[str, int]]:
    """What decides on the ids of a text: the model's vocabulary and merges, and the added tokens."""
    core = _json(path, f"{path.parent}")
    model = core.get("model", {})
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model.get("merges", [])]  # of both forms
    return model.get("vocab"), merges, {token["content"]: token["id"] for token in core.get("added_tokens", [])}
