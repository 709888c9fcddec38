"""The training engine on one or many ranks without pipeline stages, and what it shares with the one that has them
(mads.train.pipeline): the optimizer, DeepSpeed's configuration, loss scaling, clipping and checks around one optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import deepspeed
import numpy as np
import torch
from torch import nn

from mads import collectives, noise
from mads.data.batch import PackedBatch
from mads.layout import counts_on, layout_of, logical_shape, named_logical_parameters
from mads.model.compiled import as_written
from mads.tensor import Objective
from mads.topology import MPU, Topology
from mads.train.interface import NonFiniteError
from mads.train.optimizer_state import optimizer_state_of
from mads.train.pulse import Pulse
from mads.train.zero import zero_settings


@dataclass(frozen=True)
class StepResult:
    """loss: mean over the valid tokens of the global batch, nats, of what is minimised (label smoothing and z-loss included);
    norm: of the gradient before clipping, on the device where DeepSpeed has measured it."""

    loss: float
    norm: torch.Tensor | float

    @property
    def grad_norm(self) -> float:
        """The norm as a number. On a GPU the host waits for it, and so for the whole step: only for a step that is logged."""
        return float(self.norm)


def adamw(module: nn.Module, optim) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only. The rate is set before every step; it starts at 0 because one of DeepSpeed's
    wrappers takes a step of its own to create the moments."""
    decayed, plain = [], []
    for _, parameter in named_logical_parameters(module):
        layout_of(parameter)  # unmarked parameters would get a wrong norm under tensor parallelism: fail here
        (decayed if parameter.dim() > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]  # DeepSpeed's flat buffers cannot be empty
    return torch.optim.AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


def deepspeed_config(parallel, optim, train, topology: Topology, dtype: torch.dtype) -> dict:
    """The JSON config of DeepSpeed. Losses are scaled here in mads, so its own division by the accumulation steps is not used."""
    replicas = data_ranks(topology, parallel.zero_stage)
    accumulation = train.global_batch_size // (train.micro_batch_size * topology.size("dp"))
    config = {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": train.micro_batch_size * accumulation * replicas,
        "zero_optimization": zero_settings(parallel),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # an offloaded AdamW is PyTorch's, so that no compiler is needed
        "seq_parallel_communication_data_type": "fp32",
        "steps_per_print": 10**9,
        # Activations differ between tensor-parallel ranks under sequence parallelism, so a stage must not send a slice for all.
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
    }
    # Said in every case, because DeepSpeed clips at 1.0 when it is told nothing.
    config["gradient_clipping"] = 0.0 if clips_itself(parallel.zero_stage, dtype, topology) else float(optim.grad_clip)
    if dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if parallel.zero_stage > 0:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def data_ranks(topology: Topology, zero_stage: int) -> int:
    """How many ranks DeepSpeed takes for data-parallel ones. The ranks that share a sequence are among them under ZeRO 3 (see
    mads.topology.MPU) and on pipeline stages, whose grid has no other axis for them; else it knows them as sequence ranks."""
    shared = topology.size("pp") > 1 or zero_stage == 3
    return topology.size("dp") * (topology.size("cp") if shared else 1)


def clips_itself(zero_stage: int, dtype: torch.dtype, topology: Topology) -> bool:
    """Whether mads measures and clips the gradient, without ZeRO: in fp32, where DeepSpeed would clip without a check for NaN and
    would not tell the norm; in bf16 under tensor parallelism, where its wrapper measures copies of the gradients that have lost
    their marks, so that shards on other ranks are not counted."""
    return zero_stage == 0 and (dtype == torch.float32 or topology.size("tp") > 1)


def prepare_deepspeed() -> None:
    """Let DeepSpeed use the process group that exists, and switch off an inference-only op that would be compiled for minutes."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


class Engine:
    """What the loop, rewards and checkpoints see of a DeepSpeed engine, with mads's loss scaling, clipping and checks around it.

    Args:
        module: what this rank holds of the model.
        topology: the grid and its groups.
        parallel, optim, train: the config sections of these names.
        dtype: torch.float32 or torch.bfloat16.
        device: where the batches go.
        pulse: beats with every micro-batch of every pass; None: nobody looks.
    """

    def __init__(
        self,
        module: nn.Module,
        topology: Topology,
        parallel,
        optim,
        train,
        dtype: torch.dtype,
        device: torch.device,
        pulse: Pulse | None = None,
    ):
        prepare_deepspeed()
        self.topology = topology
        self.pulse = pulse or Pulse()
        self.dtype = dtype
        self.device = device
        self.zero_stage = parallel.zero_stage
        self.on_disk = "nvme" in (parallel.offload_optimizer.device, parallel.offload_param.device)
        self.grad_clip = float(optim.grad_clip)
        smoothed = optim.label_smoothing > 0 or optim.z_loss > 0
        self.objective = Objective(optim.label_smoothing, optim.z_loss) if smoothed else None
        self._dropout = module.config.hidden_dropout > 0 or module.config.attention_dropout > 0
        self._seed, self._micro_batch_size, self._compiled = train.seed, train.micro_batch_size, train.compile
        self.logical_names = {parameter: name for name, parameter in named_logical_parameters(module)}
        self.logical_shapes = self._all_shapes(module)
        self.engine = self._initialize(module, adamw(module, optim), deepspeed_config(parallel, optim, train, topology, dtype))
        self.state = optimizer_state_of(self.engine, topology.group("dp_cp"))
        self.state.prepare_load(0)

    def _all_shapes(self, module: nn.Module) -> dict[str, torch.Size]:
        """Logical shapes of all parameters of the model, those of other stages included."""
        count = self.topology.size("tp")
        shapes = {name: list(logical_shape(parameter, count)) for name, parameter in named_logical_parameters(module)}
        merged = {}
        for part in collectives.all_gather_json(shapes, self.topology.group("control")):
            merged |= part
        return {name: torch.Size(merged[name]) for name in sorted(merged)}

    def _initialize(self, module: nn.Module, optimizer: torch.optim.Optimizer, config: dict):
        """The DeepSpeed engine."""
        raise NotImplementedError

    def _run(self, micro_batches: Sequence[PackedBatch], draws: list[torch.Tensor | None], scale: float, before_step) -> None:
        """Forward and backward of every micro-batch, with the gradient of the summed token losses times `scale`; then
        `before_step(sum of the token losses on this rank)`, then the optimizer step."""
        raise NotImplementedError

    @property
    def module(self) -> nn.Module:
        """The bare model: forward passes through it leave no trace in DeepSpeed's counters."""
        return self.engine.module

    def as_written(self) -> AbstractContextManager[None]:
        """Inside, forward passes run the layers as they are written, compiled or not: hooks are called, and batches of other
        shapes than those of training do not make the compiler start."""
        return as_written() if self._compiled else nullcontext()

    @property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Logical name and parameter of what this rank holds, in a fixed order."""
        return sorted(((name, p) for p, name in self.logical_names.items()), key=lambda item: item[0])

    # ------------------------------------------------------------ one optimizer step

    def train_step(self, micro_batches: list[PackedBatch], valid_tokens: int, rate: float, step: int | None = None) -> StepResult:
        """One optimizer step on this rank's micro-batches of the global batch.

        Args:
            valid_tokens: targets in the global batch, over all ranks and micro-batches: the loss is the mean over them.
            rate: learning rate of this step.
            step: its number, from which dropout is drawn; None trains without dropout.

        Raises:
            NonFiniteError: on all ranks, before the parameters change.
        """
        loss, norm = None, None

        def before_step(summed: torch.Tensor) -> None:
            nonlocal loss, norm
            # In double precision, and each token's loss on one rank only: the same number whatever the layout.
            values = [collectives.all_reduce_(summed.double(), self.topology.group("world"))]
            if self._clips_itself:
                gradients = {name: p.grad for name, p in self.parameters if p.grad is not None}
                values.append(self.gradient_norm(gradients))
            total, *norms = torch.stack(values).tolist()  # the one place where mads waits for the device (docs/hot_loop.md)
            loss = total / max(1, valid_tokens)
            if not math.isfinite(total):
                self.discard_gradients()
                raise NonFiniteError(f"the loss of the global batch is {loss}; the step was not taken")
            for group in self.engine.optimizer.param_groups:
                group["lr"] = rate
            if norms:
                norm = norms[0]
                self._clip(gradients, norm)

        draws = [self._draws(step, index) for index in range(len(micro_batches))]
        # All copies are under way before the first forward: from pinned memory (the loader's) the host waits for none.
        self._run([b.to(self.device) for b in micro_batches], draws, 1.0 / max(1, valid_tokens), before_step)
        if not self.engine.was_step_applied():
            raise NonFiniteError(f"the gradient norm is not finite although the loss is {loss}; the step was not taken")
        return StepResult(loss, self.engine.get_global_grad_norm() if norm is None else norm)

    def _draws(self, step: int | None, micro_batch: int) -> torch.Tensor | None:
        """A key for each row of a micro-batch: a hash of its place in the global batch, so that dropout does not depend on how
        the batch is cut over ranks."""
        if step is None or not self._dropout:
            return None
        m, dp = self._micro_batch_size, self.topology.size("dp")
        rows = (micro_batch * dp + self.topology.coordinate("dp")) * m + np.arange(m)
        keys = noise.hash64(self._seed, "dropout", step, rows)
        return torch.from_numpy((keys >> np.uint64(1)).astype(np.int64))

    @property
    def averaged_over(self) -> int:
        """By what DeepSpeed divides the sum of gradients over data- and context-parallel ranks. Losses are multiplied by it, so
        that the gradient is that of the mean over the tokens of the global batch."""
        return data_ranks(self.topology, self.zero_stage)

    @property
    def counts_losses(self) -> bool:
        """Whether this rank's token losses count: every tensor-parallel rank holds the same ones."""
        return self.topology.coordinate("tp") == 0

    @property
    def _clips_itself(self) -> bool:
        return clips_itself(self.zero_stage, self.dtype, self.topology)

    def gradient_norm(self, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
        """Euclidean norm of the model's gradient, float64, the same bits on every rank of a model: shards add up, replicas and
        tied weights count once.

        Args:
            gradients: this rank's, by logical name, already averaged over the data-parallel ranks.
        """
        rank = self.topology.coordinate("tp")
        counted = [gradients[name] for name, p in self.parameters if name in gradients and counts_on(p, rank)]
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        if counted:
            squares = torch.stack(torch._foreach_norm(counted, 2, dtype=torch.float32)).double().square().sum()
        return collectives.all_reduce_(squares, self.topology.group("model")).sqrt()

    def _clip(self, gradients: dict[str, torch.Tensor], norm: float) -> None:
        """Check and clip the gradients that the optimizer is about to read."""
        if not math.isfinite(norm):
            self.discard_gradients()
            raise NonFiniteError(f"the gradient norm is {norm}; the step was not taken")
        if self.grad_clip > 0:
            factor = self.grad_clip / (norm + 1e-6)
            if factor < 1:
                torch._foreach_mul_(list(gradients.values()), factor)

    def discard_gradients(self) -> None:
        """Forget what backward passes have left, so that the next step starts clean."""
        optimizer = self.engine.optimizer
        for name in ("zero_grad", "clear_hp_grads"):
            if hasattr(optimizer, name):
                getattr(optimizer, name)()
        self.engine.zero_grad()
        if hasattr(optimizer, "averaged_gradients") and self.zero_stage < 3:
            for key in optimizer.averaged_gradients:
                optimizer.averaged_gradients[key] = None
                optimizer.all_grad_tensors[key] = None
        if hasattr(optimizer, "micro_step_id"):
            optimizer.micro_step_id = -1 if self.zero_stage < 3 else 0


class TrainEngine(Engine):
    """ZeRO 0-3 with data, tensor, sequence and context parallelism.

    `module(tokens, labels, positions, segments, draws, objective)` returns the sum of the token losses and each of them [B, S]:
    mads.model.Decoder.
    """

    def _initialize(self, module, optimizer, config):
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config, mpu=MPU(self.topology, self.zero_stage), dist_init_required=False
        )
        if self.zero_stage == 0 and self.topology.size("dp") * self.topology.size("cp") == 1:
            engine.enable_backward_allreduce = False  # else all gradients go through a buffer, to be summed with nothing
        return engine

    def _run(self, micro_batches, draws, scale, before_step):
        summed = torch.zeros((), dtype=torch.float64, device=self.device)
        if not self.module.training:  # going through all modules takes milliseconds of a large model's step
            self.engine.train()
        for index, (batch, draw) in enumerate(zip(micro_batches, draws)):
            self.pulse.beat()
            self.engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            total, losses = self.engine(batch.tokens, batch.labels, batch.positions, batch.segments, draw, self.objective)
            self.engine.backward(total * (scale * self.averaged_over), scale_wrt_gas=False)
            if self.counts_losses:
                summed += losses.sum(dtype=torch.float64)
        before_step(summed)
        self.engine.step()
