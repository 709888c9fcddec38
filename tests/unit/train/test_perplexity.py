"""Perplexity under a checkpoint of mads: the model's own losses, independent of the batch, refused where it does not fit."""

import json
import math

import numpy as np
import pytest
import torch
from export_support import write_run
from label_support import natural
from omegaconf import OmegaConf

from mads.checkpoint.manifest import CheckpointError
from mads.data.schema import DataError
from mads.data.tokenizer import Tokenizer
from mads.label.base import load_labeller, save_labeller
from mads.train.perplexity import CheckpointPerplexity


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as training leaves it, with random weights of some size; its model; its data."""
    folder = tmp_path_factory.mktemp("run")
    return folder, write_run(folder, scale=5.0)


def test_bits_are_those_of_the_logits(run):
    folder, model = run
    labeller = CheckpointPerplexity(str(folder))
    labeller.fit(natural(30))
    documents, tokenizer = natural(10, seed=6), Tokenizer.open(folder / "data" / "tokenizer.model")
    for document, value in zip(documents, labeller.label(documents)[1]):
        tokens = torch.from_numpy(tokenizer.encode([document.text])[0][:32].astype(np.int64))[None]
        with torch.no_grad():
            logits = model.logits(tokens, torch.arange(tokens.shape[1])[None], torch.zeros_like(tokens))[0].double()
        nats = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="sum").item()
        size = len(tokenizer.decode(tokens[0].numpy())) - len(tokenizer.decode(tokens[0, :1].numpy()))
        assert value == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_labels_do_not_depend_on_the_batch_and_the_state_comes_back(run, tmp_path):
    labeller, fresh = CheckpointPerplexity(str(run[0])), CheckpointPerplexity(str(run[0]), data_dir=str(run[0] / "data"))
    labeller.fit(natural(30))
    save_labeller(tmp_path / "p.npz", labeller)
    load_labeller(tmp_path / "p.npz", fresh)
    documents = natural(12, seed=6)
    together = labeller.label(documents)
    alone = [fresh.label([d]) for d in reversed(documents)][::-1]
    assert together[0].tobytes() == np.concatenate([a[0] for a in alone]).tobytes()
    assert together[1].tobytes() == np.concatenate([a[1] for a in alone]).tobytes()
    assert str(run[0]) not in json.dumps(labeller.schema().provenance)
    with pytest.raises(DataError, match="max_length"):
        load_labeller(tmp_path / "p.npz", CheckpointPerplexity(str(run[0]), max_length=16))


def test_what_does_not_fit_is_refused(run, tmp_path):
    import shutil

    with pytest.raises(DataError, match="no checkpoint"):
        CheckpointPerplexity(str(tmp_path))
    shutil.copytree(run[0], tmp_path / "run")
    other = OmegaConf.load(tmp_path / "run" / "config.yaml")
    other.model.ffn_hidden_size *= 2
    OmegaConf.save(other, tmp_path / "run" / "config.yaml")
    with pytest.raises(DataError, match="does not fit the model"):
        CheckpointPerplexity(str(tmp_path / "run"))
    weights = next((tmp_path / "run").rglob("weight-*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged"):
        CheckpointPerplexity(str(tmp_path / "run"))
