"""A checkpoint's model on one process that does not train, whatever grid and ZeRO stage it was trained at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mads.checkpoint.canonical import read_weights
from mads.checkpoint.finding import find_latest
from mads.data.schema import DataError, Manifest
from mads.data.tokenizer import Tokenizer
from mads.model.decoder import Decoder


@dataclass(frozen=True)
class SavedModel:
    """A checkpoint of a run: its folder, the run's configuration, and the tokenizer that the run was trained with."""

    checkpoint: Path
    config: DictConfig
    tokenizer: Tokenizer
    tokenizer_file: Path

    @classmethod
    def find(cls, where: str | Path, data_dir: str | None = None) -> SavedModel:
        """Look for it; weights are read by `load`.

        Args:
            where: a run folder (its newest checkpoint is taken) or a checkpoint of one.
            data_dir: a prepared directory with the run's tokenizer; None: the run's own data.dir.

        Raises:
            DataError: no configuration, no checkpoint, or a tokenizer with more ids than the model.
            CheckpointError: the newest checkpoint is damaged.
        """
        where = Path(where)
        single = (where / "manifest.json").is_file()
        run = where.parent.parent if single else where
        path = where if single else find_latest(where / "checkpoints")
        if path is None or not (run / "config.yaml").is_file():
            raise DataError(f"{where} is no folder of a run: it has no checkpoint or no config.yaml")
        try:
            config = OmegaConf.load(run / "config.yaml")
        except (OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{run / 'config.yaml'} cannot be read: {error}") from error
        data = Path(config.data.dir if data_dir is None else data_dir)
        record = Manifest.read(data).tokenizer
        tokenizer = Tokenizer.open(data / record["file"], record["kind"])
        if tokenizer.vocab_size > config.model.vocab_size:
            raise DataError(
                f"the tokenizer of {data} has {tokenizer.vocab_size} ids, the model of {run} has {config.model.vocab_size}; give "
                "the directory that the run was trained on"
            )
        return cls(path, config, tokenizer, data / record["file"])

    def load(self) -> Decoder:
        """The model in fp32 on the CPU, in evaluation mode.

        Raises:
            DataError: the weights are not those of the model in config.yaml.
            CheckpointError: a file is missing or damaged.
        """
        model, weights = Decoder(self.config.model), read_weights(self.checkpoint)
        own = dict(model.named_parameters())
        if {n: p.shape for n, p in own.items()} != {n: w.shape for n, w in weights.items()}:
            raise DataError(f"the checkpoint {self.checkpoint} does not fit the model in the run's config.yaml")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])
        return model.eval()
