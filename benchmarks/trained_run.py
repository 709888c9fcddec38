"""What the benchmarks of rewards start from: a run's checkpoint in the product's own engine, and probes from its data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks.exact_model import ExactModel, ReferenceSet
from mads.checkpoint import canonical
from mads.checkpoint.finding import find_latest
from mads.checkpoint.manifest import name_of
from mads.config.schema import FiniteDifferenceRewardConfig, GhostRewardConfig
from mads.data.loader import Loader
from mads.data.pool import Pool
from mads.data.tokenizer import Tokenizer
from mads.model.decoder import Decoder
from mads.noise import hash64
from mads.reward.influence import Rewarder
from mads.reward.probes import SharedProbes, draw_probes
from mads.reward.reference import ReferenceTask, load_references
from mads.topology import Grid, Topology, initialize_process_group
from mads.train.engine import TrainEngine
from mads.train.reward_model import EngineRewardModel
from mads.train.schedule import learning_rate


def checkpoint_parser(description: str) -> argparse.ArgumentParser:
    """Options of a study of one checkpoint that can be stopped: which one, on what data, and where the record is kept."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--run", required=True, help="folder of a run of `mads train`; its newest checkpoint is studied")
    parser.add_argument("--step", type=int, help="study the checkpoint of this step instead")
    parser.add_argument("--data", required=True, help="the prepared directory that it was trained on")
    parser.add_argument("--out", required=True, help="JSON file to write, or to go on with")
    return parser


@dataclass
class TrainedRun:
    """A checkpoint of a run folder and the prepared data that it was trained on."""

    config: DictConfig
    checkpoint: Path
    pool: Pool
    references: list[ReferenceTask]
    topology: Topology

    @classmethod
    def open(cls, run_dir: str, data_dir: str, step: int | None = None) -> TrainedRun:
        """Join a job of one process and open the folders, with the checkpoint of `step` (None: the newest).

        Raises:
            ValueError: if the run folder holds no such checkpoint, or was trained on other data.
        """
        config, root = OmegaConf.load(Path(run_dir) / "config.yaml"), Path(run_dir) / "checkpoints"
        checkpoint = find_latest(root) if step is None else root / name_of(step)
        if checkpoint is None:
            raise ValueError(f"{run_dir} holds no checkpoint; train it first (mads train run_dir={run_dir})")
        if not checkpoint.is_dir():
            raise ValueError(f"{checkpoint} is not there; train with checkpoint.keep_steps=[{step}]")
        pool = Pool.open(data_dir)
        trained_on = canonical.read_state(checkpoint)[0]["loader"]["fingerprint"]
        if trained_on != pool.fingerprint:
            raise ValueError(f"{run_dir} was trained on data {trained_on}, {data_dir} holds {pool.fingerprint}")
        tokenizer = Tokenizer.open(Path(data_dir) / pool.manifest.tokenizer["file"], pool.manifest.tokenizer["kind"])
        references = load_references(data_dir, sorted(pool.manifest.references), tokenizer, config.data.seq_length)
        initialize_process_group("gloo", config.parallel.timeout_s)
        return cls(config, checkpoint, pool, references, Topology(Grid()))

    def engine(self, dtype: torch.dtype) -> TrainEngine:
        """A training engine that holds the checkpoint; parameters of `dtype`, master weights and moments in fp32."""
        config = self.config
        module = Decoder(config.model, seed=config.train.seed)
        engine = TrainEngine(module, self.topology, config.parallel, config.optim, config.train, dtype, torch.device("cpu"))
        canonical.load(self.checkpoint, engine, self.topology)
        return engine

    def rewarder(self, engine: TrainEngine, reward) -> Rewarder:
        """The product's rewards with the reward config `reward`."""
        config = self.config
        sizes = {name: shape.numel() for name, shape in engine.logical_shapes.items()}
        model, optim = EngineRewardModel(engine), config.optim
        return Rewarder(
            model,
            self.references,
            self.topology,
            sizes,
            optim.beta2,
            optim.eps,
            config.data.seq_length,
            config.train.seed,
            reward,
        )

    def reference_sets(self, examples: int) -> dict[str, ReferenceSet]:
        """`examples` of each task of the direction's and of the audit's part, by part."""
        length = self.config.data.seq_length
        return {part: ReferenceSet(self.references, part, examples, 0, length, 8) for part in ("direction", "audit")}

    def rate(self, steps: int) -> float:
        """Learning rate of the run after `steps` steps (at its end: that of its last step)."""
        train = self.config.train
        return learning_rate(min(steps, train.steps - 1), train.steps, self.config.optim.lr, self.config.schedule)

    def probes(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(positions in the pool, domain codes) of `count` probes, equally many of every domain."""
        view = self.pool.view(slice(None))
        positions = draw_probes(view, SharedProbes(count), {"domain": "domain"}, seed, 0).positions
        return positions, self.pool.codes("domain")[positions].astype(int)

    def batches(
        self, count: int, seed: int, without: Sequence[int] = (), only: np.ndarray | None = None, rows: int | None = None
    ) -> Loader:
        """A loader that gives `count` global batches of `rows` rows (by default the training's), drawn at random.

        Args:
            without: positions in the pool to leave out.
            only: positions to draw from instead of the whole pool.
        """
        config, rows = self.config, rows or self.config.train.global_batch_size
        positions = np.setdiff1d(np.arange(len(self.pool)) if only is None else only, without)
        shuffled = positions[np.argsort(hash64(seed, "benchmark/batches", 0, self.pool.ids[positions]), kind="stable")]
        tokens = np.cumsum(self.pool.lengths[shuffled])
        # Rows are not filled to the last token: half as much again is enough for `count` whole batches.
        wanted = int(np.searchsorted(tokens, 1.5 * count * rows * config.data.seq_length)) + 1
        loader = Loader(self.pool, config.data.seq_length, rows, config.train.micro_batch_size, 0, 1)
        loader.begin_round(0, self.pool.ids[shuffled[:wanted]])
        return loader


@dataclass
class Study:
    """The model under study and its probes. `samples` are the probes' tokens, `weights` their numbers of targets."""

    run: TrainedRun
    engine: TrainEngine
    exact: ExactModel
    positions: np.ndarray
    domains: np.ndarray
    samples: list[np.ndarray]

    @classmethod
    def draw(cls, run: TrainedRun, engine: TrainEngine, exact: ExactModel, probes: int) -> Study:
        """With that many probes, equally many of every domain."""
        positions, domains = run.probes(probes, seed=1)
        return cls(run, engine, exact, positions, domains, run.pool.tokens(positions))

    @property
    def weights(self) -> np.ndarray:
        return np.array([len(s) - 1 for s in self.samples], dtype=np.float64)

    def reward(self, kind=FiniteDifferenceRewardConfig, **settings):
        run = self.run.config.reward
        mode = "ghost" if kind is GhostRewardConfig else "finite_difference"
        common = {"mode": mode, "reference_examples": run.reference_examples, "rows_per_batch": run.rows_per_batch}
        return kind(**(common | {"damping": run.damping} | settings))

    def references(self, part: str) -> ReferenceSet:
        """The references of a part, those that the product's round 0 draws."""
        reward, seed = self.run.config.reward, self.run.config.train.seed
        return ReferenceSet(
            self.run.references, part, reward.reference_examples, seed, self.exact.seq_length, reward.rows_per_batch
        )
