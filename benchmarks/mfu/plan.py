"""Which cells the table has, and the keys of `mads train` for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mads.config.compose import compose
from mads.config.validate import validate
from mads.doctor.estimate import GIB, Cluster, estimates, fullest

# Layout -> (ZeRO stage, tensor-parallel ranks); tensor parallelism comes with sequence parallelism.
LAYOUTS = {"zero1": (1, 1), "zero2": (2, 1), "zero3": (3, 1), "tp2": (1, 2), "tp4": (1, 4)}
MODELS = ("paper_373m", "paper_1b3")
MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)
SHARE = 0.85  # of a GPU that the doctor's estimate may fill: it was not yet compared with one


@dataclass(frozen=True)
class Settings:
    """What all cells share.

    sample_tokens: length of the generated samples; seq_length: rows of one sample, without padding
    warmup: steps that do not count; a multiple of `log`
    log: steps of one measured interval
    micro_batch: rows; None: the most that fits by the doctor's estimate
    memory_gib: of the smallest GPU
    more: further overrides, for all cells
    """

    seq_length: int = 2048
    sample_tokens: int = 2048
    steps: int = 40
    warmup: int = 10
    log: int = 5
    micro_batch: int | None = None
    accumulation: int = 4
    memory_gib: float = 80.0
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run. overrides: all keys of `mads train` but data.dir and run_dir."""

    model: str
    gpus: int
    layout: str
    micro_batch: int
    global_batch: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.model}-{self.gpus}gpu-{self.layout}"

    @property
    def tensor(self) -> int:
        return LAYOUTS[self.layout][1]


def cells(models: Sequence[str], gpus: Sequence[int], layouts: Sequence[str], settings: Settings) -> list[Cell]:
    """Every model x number of GPUs x layout whose tensor-parallel size divides the GPUs.

    Raises:
        ValueError: an unknown layout, or steps that leave nothing to measure.
        ConfigError: what `mads train` would refuse.
    """
    if unknown := sorted(set(layouts) - set(LAYOUTS)):
        raise ValueError(f"layout {unknown[0]!r} is none of {', '.join(LAYOUTS)}")
    if settings.warmup % settings.log or settings.steps <= settings.warmup or settings.warmup < 1:
        raise ValueError(
            f"{settings.steps} steps, {settings.warmup} of them warm-up, {settings.log} in an interval: the warm-up is a whole "
            "number of intervals, at least one, and steps must be left to measure"
        )
    return [
        _cell(model, count, layout, settings)
        for model in models
        for count in gpus
        for layout in layouts
        if count % LAYOUTS[layout][1] == 0
    ]


def _cell(model: str, gpus: int, layout: str, settings: Settings) -> Cell:
    stage, tensor = LAYOUTS[layout]
    keys = [
        "data=prepared",
        f"data.seq_length={settings.seq_length}",
        f"model={model}",
        "selection=random",
        f"parallel=zero{stage}",
        "schedule=constant",
        "schedule.warmup_steps=1",
        f"train.steps={settings.steps}",
        f"train.log_interval={settings.log}",
        f"train.eval_interval={settings.steps}",  # before the first step and after the last: neither is measured
        f"train.invariant_interval={settings.steps + 1}",
        "train.eval_samples=8",
        f"selection.interval={settings.steps}",
        "checkpoint.interval=0",
        "checkpoint.asynchronous=false",
    ]
    if tensor > 1:
        keys += [f"parallel.tensor_model_parallel_size={tensor}", "parallel.sequence_parallel=true"]
    keys += settings.more
    replicas = gpus // tensor
    micro = settings.micro_batch or _most_that_fits(keys, gpus, replicas, settings)
    rows = replicas * micro * settings.accumulation
    keys += [f"train.micro_batch_size={micro}", f"train.global_batch_size={rows}"]
    validate(compose([*keys, "data.dir=pool", "run_dir=run"]), gpus, has_gpu=True)
    return Cell(model, gpus, layout, micro, rows, tuple(keys))


def _most_that_fits(keys: Sequence[str], gpus: int, replicas: int, settings: Settings) -> int:
    """Rows of a micro-batch; 1 if the doctor thinks that nothing fits: the run will tell."""
    config = compose([*keys, "data.dir=pool", "run_dir=run"])
    cluster = Cluster(1, gpus, int(settings.memory_gib * GIB))
    for micro in MICRO_BATCHES:
        config.train.micro_batch_size, config.train.global_batch_size = micro, replicas * micro * settings.accumulation
        if fullest(estimates(config, cluster)).peak <= SHARE * cluster.gpu_memory:
            return micro
    return 1


def command(cell: Cell, pool: Path, run_dir: Path) -> list[str]:
    """Arguments of launch/deepspeed.sh."""
    return [*cell.overrides, f"data.dir={pool}", f"run_dir={run_dir}"]
