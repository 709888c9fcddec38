"""`mads export`: a checkpoint as a folder that `transformers` loads, by one process (docs/export.md)."""

from __future__ import annotations

import argparse
import glob
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mads.checkpoint.canonical import read_state
from mads.checkpoint.manifest import CheckpointError, flush, verify
from mads.config.compose import ConfigError
from mads.data.pool import Pool
from mads.data.schema import sha256_of
from mads.export.card import model_card
from mads.export.llama import llama_config
from mads.export.tokenizer import TokenizerFiles, tokenizer_files
from mads.export.weights import tensors_of, write_weights
from mads.model.shape import parameter_count
from mads.train.inference import SavedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TEXTS = 200  # held-out samples on which both tokenizers must agree
GIGABYTE = 10**9  # as transformers counts


def export_command(arguments: Sequence[str]) -> int:
    """Returns the exit code.

    Raises:
        ConfigError, DataError: bad input, with a remedy.
    """
    parser = argparse.ArgumentParser(
        prog="mads export", description="Write a checkpoint as LlamaForCausalLM of transformers: weights, config, tokenizer."
    )
    parser.add_argument("run", help="a run folder (its newest checkpoint), or a folder of its checkpoints/")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make; it must not exist")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float32", help="of the weights; default: float32, as they are saved"
    )
    parser.add_argument("--max-shard-gb", type=float, default=5.0, metavar="N", help="most gigabytes of a file; default: 5")
    parser.add_argument("--data", metavar="DIR", help="prepared directory with the tokenizer; default: the run's data.dir")
    known = parser.parse_args(arguments)
    if not known.max_shard_gb > 0:
        raise ConfigError(f"--max-shard-gb={known.max_shard_gb} must be more than 0")
    out = Path(known.out)
    _check_target(out)
    try:
        saved = SavedModel.find(known.run, known.data)
        if (Path(known.run) / "manifest.json").is_file():  # of a run folder the newest one was verified as it was found
            verify(saved.checkpoint)
        problem = export(saved, out, known.dtype, known.max_shard_gb * GIGABYTE, known.data)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    print(f"{saved.checkpoint.name} of {saved.checkpoint.parent.parent.resolve().name} written to {out} in {known.dtype}")
    if problem:
        print(f"without tokenizer.json: {problem}; see {out}/README.md")
    return 0


def _check_target(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise ConfigError(f"--out={out} exists; choose a folder that does not, so that no file of another model stays in it")
    if not out.parent.is_dir():
        raise ConfigError(f"--out={out}: there is no folder {out.parent}; make it first")


def export(saved: SavedModel, out: Path, dtype: str, max_bytes: float, data_dir: str | None = None) -> str | None:
    """Write the folder: it is there whole, or not at all.

    Args:
        saved: its files were verified.
        out: does not exist, but its parent does.
        dtype: a key of DTYPES.
        max_bytes: of a file of weights.
        data_dir: prepared directory; None: the run's own.

    Returns: why there is no tokenizer.json, or None.

    Raises:
        DataError: the checkpoint is of another model, a weight is not finite or too large for the dtype.
    """
    model = saved.config.model
    tensors = tensors_of(saved.checkpoint, model)
    texts = _real_texts(saved, Path(data_dir or saved.config.data.dir))
    tokenizer = tokenizer_files(saved.tokenizer_file, saved.tokenizer, saved.config.data.seq_length, texts)
    for left in out.parent.glob(f".{glob.escape(out.name)}.unfinished-*"):  # of an export that was killed
        shutil.rmtree(left)
    folder = out.with_name(f".{out.name}.unfinished-{os.urandom(4).hex()}")
    folder.mkdir()
    try:
        _write_small(folder, saved, dtype, tokenizer)
        write_weights(folder, tensors, DTYPES[dtype], max_bytes)
        flush(folder)
        _check_target(out)
        os.rename(folder, out)
        flush(out.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return tokenizer.problem


def _real_texts(saved: SavedModel, data_dir: Path) -> list[str]:
    pool = Pool.open(data_dir, "heldout")
    return [saved.tokenizer.decode(sample) for sample in pool.tokens(np.arange(min(TEXTS, len(pool))))]


def _write_small(folder: Path, saved: SavedModel, dtype: str, tokenizer: TokenizerFiles) -> None:
    model, state = saved.config.model, read_state(saved.checkpoint)[0]
    config = llama_config(model, saved.config.data.seq_length, dtype, tokenizer.special)
    tokens = {f"{role}_token_id": i for role, i in tokenizer.special.items() if i is not None}
    card = model_card(
        _provenance(saved, state), dtype, parameter_count(model), saved.tokenizer.eod, tokenizer.problem, saved.tokenizer.kind
    )
    files = {
        **tokenizer.files,
        "config.json": _json(config),
        "generation_config.json": _json(tokens | {"do_sample": False}),
        "README.md": card.encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
        flush(folder / name)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _provenance(saved: SavedModel, state: dict[str, Any]) -> dict[str, Any]:
    """What the model card tells; the run by its folder's name, because paths are of one machine."""
    return {
        "run": saved.checkpoint.parent.parent.resolve().name,
        "step": state["step"],
        "tokens of training": f"{state['tokens']:,}",
        "sequence length": saved.config.data.seq_length,
        "selection": saved.config.selection.name,
        "data fingerprint": state["loader"]["fingerprint"],
        "tokenizer SHA-256": sha256_of(saved.tokenizer_file),
        "checkpoint manifest SHA-256": sha256_of(saved.checkpoint / "manifest.json"),
        "layout of the save": state["topology"],
    }
