"""Training on pipeline stages through DeepSpeed's PipelineModule and PipelineEngine.

A stage is a run of a decoder's pieces. Between stages travel the hidden states and, unchanged, what every layer needs to know of
the batch: positions, segments and, with dropout, the rows' keys.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.module import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import nn

from mads.data.batch import PackedBatch
from mads.layout import is_copy
from mads.model.partition import partition
from mads.model.pieces import PieceSpec, make_context, piece_specs, run_pieces
from mads.model.placement import Placement
from mads.topology import Topology
from mads.train.engine import Engine, prepare_deepspeed


class _Piece(LayerSpec):
    """A piece of a decoder, built on the stage that holds it and nowhere else."""

    def __init__(self, spec: PieceSpec):
        super().__init__(nn.Module)
        self.spec = spec

    def build(self, log: bool = False) -> nn.Module:
        return self.spec.build()


class Stage(PipelineModule):
    """The pieces of one pipeline stage.

    Called with (x, positions, segments[, draws]), where x are the tokens int64 [B, S] on the first stage and the hidden states
    [B, local positions, hidden] on the others. Gives the same tuple with the next hidden states; the last stage gives
    the hidden states before its final norm, from which `losses` goes on, or the losses themselves (`targets`).

    Args:
        config: the fields of mads.config.schema.ModelConfig.
        placement: how each piece is cut over ranks.
        parallel: the config section of this name.
        seed: of the start weights, which are the same for every number of stages.

    Raises:
        ValueError: if there are fewer pieces than stages.
    """

    # (labels, weights, objective) for `losses`, which the last stage gives while they are set. In bf16 DeepSpeed clears gradients
    # when the backward pass reaches what `forward` gave: those of a head behind it would be lost.
    targets: tuple | None = None

    def __init__(self, config, topology: Topology, placement: Placement, parallel, seed: int = 0, dtype=torch.float32):
        self.config, self.placement, self.dtype = config, placement, dtype
        self._topology, self._balance = topology, parallel.pipeline_partition
        self._pieces = piece_specs(config, placement, seed=seed)
        grid = PipeModelDataParallelTopology(
            num_pp=topology.size("pp"),
            num_mp=topology.size("tp"),
            # Ranks of context parallelism hold the same weights and see other positions: for the gradient they are data parallel.
            num_dp=topology.size("dp") * topology.size("cp"),
        )
        prepare_deepspeed()
        # DeepSpeed prints its layers, once for every engine, and broadcasts tied weights as if they were differentiated.
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            super().__init__([_Piece(spec) for spec in self._pieces], topology=grid, dynamic_shape=False)

    def _partition_layers(self, method="mads"):
        self.parts = partition([spec.weight(self._balance) for spec in self._pieces], self.num_stages)
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])

    def _index_tied_modules(self):
        """The embedding's weight on the first stage and its copy on the last, in DeepSpeed's words."""
        if not self.config.tie_embeddings or not self._topology.has_group("embedding"):
            return {}
        holder = self.forward_funcs[0].embedding if self._topology.is_first_stage else self.forward_funcs[-1].head
        ranks = next([r[0], r[-1]] for r in self._topology.grid.groups("pp") if self._topology.rank in r)
        # _build has cleared the mark by which DeepSpeed leaves a copy out of the gradient norm.
        for parameter in self.parameters():
            parameter.ds_pipe_replicated = is_copy(parameter)
        group = self._topology.group("embedding")
        return {"embedding": {"ranks": ranks, "group": group, "weight_attr": ["weight"], "module": holder}}

    def get_tied_weights_and_groups(self):
        return [(entry["module"].weight, entry["group"]) for entry in self.tied_comms.values()]

    def forward(self, inputs):
        x, positions, segments, *draws = inputs
        context = make_context(self.config, self.placement, positions, segments, draws[0] if draws else None, self.dtype)
        if not self._topology.is_last_stage:
            return run_pieces(self.forward_funcs, x, context), positions, segments, *draws
        x = run_pieces(self.forward_funcs[:-1], x, context)
        return x if self.targets is None else self.losses(x, *self.targets)

    def hidden_shape(self, batch: PackedBatch) -> tuple[int, int, int]:
        """Shape of the hidden states that arrive from the stage before."""
        rows, length = batch.tokens.shape
        cut = self._topology.size("cp") * (self._topology.size("tp") if self.placement.sequence_parallel else 1)
        return rows, length // cut, self.config.hidden_size

    def losses(self, hidden: torch.Tensor, labels: torch.Tensor, weights=None, objective=None):
        """mads.model.pieces.Output.losses of the last stage's hidden states."""
        return self.forward_funcs[-1].losses(hidden, labels, weights, objective)


class _StageEngine(PipelineEngine):
    """DeepSpeed's pipeline engine with a hook between the finished gradients and the optimizer step. Losses arrive scaled."""

    before_step = None
    beat = None
    objective = None

    def _exec_forward_pass(self, buffer_id):
        if self.is_last_stage():
            self.module.targets = self.pipe_buffers["labels"][buffer_id], None, self.objective
        super()._exec_forward_pass(buffer_id)
        self.module.targets = None

    def _exec_backward_pass(self, buffer_id):
        self.beat()
        if self.is_last_stage():  # not divided by the accumulation steps: the loss is a share of the global batch's already
            DeepSpeedEngine.backward(self, self.loss, scale_wrt_gas=False)
        else:
            super()._exec_backward_pass(buffer_id)

    def _exec_optimizer_step(self, lr_kwargs=None):
        self.before_step()
        super()._exec_optimizer_step(lr_kwargs)

    # The base class finds methods by this map, not by name.
    _INSTRUCTION_MAP = PipelineEngine._INSTRUCTION_MAP | {
        schedule.ForwardPass: _exec_forward_pass,
        schedule.BackwardPass: _exec_backward_pass,
        schedule.OptimizerStep: _exec_optimizer_step,
    }

    def train_pass(self, batches: Sequence[tuple], before_step, beat) -> None:
        """Run the 1F1B schedule over ((inputs of the first stage), (labels of the last stage)) pairs, each with a
        `beat`, then the step."""
        self.module.train()
        self.total_loss = self.total_additional_losses = None
        self._compute_loss = True
        self.before_step, self.beat = before_step, beat
        self.reset_activation_shape()  # an evaluation may have had other rows
        self.set_dataiterator(iter(batches))
        # Of as many micro-batches as there are; DeepSpeed's own schedule has always those of a training step.
        self._exec_schedule(schedule.TrainSchedule(len(batches), self.num_stages, self.stage_id))


class PipelineTrainEngine(Engine):
    """ZeRO 0-1 with pipeline stages, and with data, tensor, sequence and context parallelism inside each of them."""

    def _initialize(self, module: Stage, optimizer, config):
        grid = module.mpu()
        with contextlib.redirect_stdout(io.StringIO()):
            engine = _StageEngine(
                args=None,
                model=module,
                optimizer=optimizer,
                mpu=grid,
                dist_init_required=False,
                config=config,
                config_class=DeepSpeedConfig(config, grid),
            )
        return engine

    def _run(self, micro_batches, draws, scale, before_step):
        stage = self.engine.module
        summed = torch.zeros((), dtype=torch.float64, device=self.device)
        factor = scale * self.averaged_over

        def loss_of(outputs, labels):
            nonlocal summed
            total, losses = outputs
            if self.counts_losses:
                summed += losses.sum(dtype=torch.float64)
            return total * factor

        stage.loss_fn, self.engine.objective = loss_of, self.objective
        pairs = [
            ((b.tokens, b.positions, b.segments) if d is None else (b.tokens, b.positions, b.segments, d), b.labels)
            for b, d in zip(micro_batches, draws)
        ]
        self.engine.train_pass(pairs, lambda: before_step(summed), self.pulse.beat)
