"""What a run writes and shows: run folder files, W&B, progress lines. Only rank 0 writes; other ranks hold a silent journal."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig

from mads.config.compose import ConfigError, to_dict, to_yaml
from mads.config.validate import precision_of
from mads.console.exchange import raise_together
from mads.logging.decisions import write_decision
from mads.logging.environment import environment, write_environment
from mads.logging.metrics import MetricsWriter, write_atomically
from mads.logging.progress import Progress
from mads.logging.tensorboard import TensorboardSink
from mads.logging.throughput import peak_flops, utilisation
from mads.logging.wandb import WandbSink
from mads.model.shape import flops_per_token
from mads.topology import Topology
from mads.train.pulse import Pulse
from mads.train.resolved import resolved


def peak_memory_mib(device: str) -> float:
    """Peak memory of this process: on the GPU where there is one, resident otherwise."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20


class Journal:
    """Opened in two steps, because whether the files are continued is known only after the checkpoint was looked at."""

    def __init__(self, config: DictConfig, topology: Topology, pulse: Pulse | None = None):
        self._config, self._topology, self._pulse = config, topology, pulse or Pulse()
        self._writes = topology.rank == 0
        self._progress = Progress(config.train.steps, enabled=self._writes and config.logging.console)
        self._metrics: MetricsWriter | None = None
        self._sinks: tuple[WandbSink | TensorboardSink, ...] = ()
        self._seconds: dict[str, float] = {}
        self._started = self._last_line = time.perf_counter()
        self._last_step = self._last_tokens = 0
        self._device = "cpu"
        self._choosing = 0.0
        self._peak: float | None = None
        self._token_flops = flops_per_token(config.model, config.data.seq_length)

    def message(self, text: str) -> None:
        self._pulse.beat()
        self._progress.message(text)

    def warn(self, text: str) -> None:
        """What must not be missed: on rank 0's stderr, with progress lines or without."""
        if self._writes:
            print(f"mads train: {text}", file=sys.stderr, flush=True)

    def open(self, resume_step: int | None, tokens: int, parts) -> None:
        """Collective: start or continue the run folder's files.

        Raises:
            ConfigError: on rank 0, RankFailedError elsewhere: the folder cannot be written, or W&B cannot start.
        """
        self._device = str(parts.engine.device)
        error = None
        if self._writes:
            try:
                self._open(resume_step, tokens, parts)
            except OSError as caught:
                error = ConfigError(f"run_dir={self._config.run_dir} cannot be written ({caught}); choose another run_dir")
            except (RuntimeError, ValueError) as caught:
                error = ConfigError(str(caught))
        raise_together(error, self._topology, "opening the run folder")

    def _open(self, resume_step: int | None, tokens: int, parts) -> None:
        run_dir = Path(self._config.run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / "config.yaml", to_yaml(self._config))
        facts = resolved(self._config.model, parts.engine)
        write_environment(run_dir, environment(self._topology.world_size, self._device, resolved=facts), resume_step)
        self._metrics = MetricsWriter(run_dir, resume_step)
        if resume_step is not None:  # the folder may have lost it, the checkpoint has not
            write_decision(run_dir, parts.console.round - 1, parts.console.pending)
        logging = self._config.logging
        self._sinks = (
            WandbSink(logging.wandb, logging.project, run_dir, to_dict(self._config)),
            TensorboardSink(logging.tensorboard, run_dir, resume_step),
        )
        if self._device.startswith("cuda"):
            precision = precision_of(self._config, has_gpu=True)
            self._peak = peak_flops(torch.cuda.get_device_name(parts.engine.device), precision)
        self._progress = Progress(self._config.train.steps, resume_step or 0, self._config.logging.console)
        shape, count = self._config.model, sum(s.numel() for s in parts.engine.logical_shapes.values())
        self.message(
            f"{self._topology.grid} on {self._device}, {count:,} parameters "
            f"({shape.num_layers} layers of {shape.hidden_size}), pool of {len(parts.pool):,} samples with "
            f"{parts.pool.total_tokens:,} tokens, selection={self._config.selection.name}"
        )
        self._started = self._last_line = time.perf_counter()
        self._last_step, self._last_tokens = resume_step or 0, tokens

    @contextmanager
    def phase(self, name: str):
        """Add the block's wall seconds to a phase; written with the next train line, and a span of its own in a profile."""
        start = time.perf_counter()
        with torch.profiler.record_function(f"mads.{name}"), self._pulse.during(name):
            yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    @contextmanager
    def selecting(self):
        """Count the block's wall seconds, rewards and all, as the selection's in the next train line."""
        start = time.perf_counter()
        with torch.profiler.record_function("mads.selection"):
            yield
        self._choosing += time.perf_counter() - start

    def _write(self, kind: str, **fields) -> None:
        if self._metrics is None:
            return
        line = self._metrics.write(kind, **fields)
        self._progress.metrics(line)
        for sink in self._sinks:
            sink.log(line)

    def _flush_phases(self, step: int) -> None:
        for name, seconds in self._seconds.items():
            self._write("phase", name=name, step=step, seconds=seconds)
        self._seconds = {}

    def train(self, step: int, tokens: int, result, rate: float, round_: int) -> None:
        """Write a train line with the phases since the last one; tokens and seconds are counted from there too."""
        now = time.perf_counter()
        seconds = now - self._last_line
        steps = max(1, step - self._last_step)
        busy = self._seconds.get("train", 0.0) + self._seconds.get("loader", 0.0)
        self._write(
            "train",
            step=step,
            tokens=tokens,
            loss=result.loss,
            lr=rate,
            grad_norm=result.grad_norm,
            seconds=seconds,
            tokens_per_second=(tokens - self._last_tokens) / seconds,
            step_seconds=busy / steps,
            selection_seconds=self._choosing,
            **utilisation(self._token_flops, tokens - self._last_tokens, busy, self._topology.world_size, self._peak),
            round=round_,
            memory_mib=peak_memory_mib(self._device),
        )
        self._choosing = 0.0
        self._flush_phases(step)
        self._last_line, self._last_step, self._last_tokens = now, step, tokens

    def decision(self, record, ids) -> None:
        """The record on rank 0, None elsewhere; the decided ids."""
        if self._metrics is None:
            return
        self._metrics.decision(record, ids)
        self._progress.decision(record)
        for sink in self._sinks:
            sink.decision(record)
        for name, seconds in record.seconds.items():
            self._write("phase", name=name, step=record.step, seconds=seconds)

    def evaluation(self, step: int, tokens: int, losses: dict) -> None:
        self._write("eval", step=step, tokens=tokens, **losses)

    def checkpoint(self, saved) -> None:
        """How a save went (mads.checkpoint.saver.Saved). A failure stops the run at its next save or end, and is said at once."""
        if saved.error:
            self.message(f"saving checkpoint {saved.step} failed: {saved.error}; the run stops at its next save or end")
            return
        fields = {name: getattr(saved, name) for name in ("step", "stall_seconds", "write_seconds", "bytes")}
        self._write("checkpoint", **fields)

    def close(self, step: int, tokens: int, finished: bool) -> None:
        if self._metrics is None:
            return
        self._flush_phases(step)
        if finished:
            self._write(
                "end",
                steps=step,
                tokens=tokens,
                seconds=time.perf_counter() - self._started,
                peak_memory_mib=peak_memory_mib(self._device),
            )
        self._metrics.close()
        for sink in self._sinks:
            sink.finish()
