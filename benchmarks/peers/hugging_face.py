"""transformers' LlamaForCausalLM, in a bare loop and under its Trainer. Packed documents are told by positions that begin again,
from which transformers makes a mask of blocks (transformers.masking_utils)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from .cell import Batch, Job, Shape, read_batches
from .loops import Contestant, Loop, start_weights
from .profiles import rows_of, summary


def build(shape: Shape, seq_length: int) -> LlamaForCausalLM:
    """The model, with PyTorch's attention function."""
    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=shape.vocab_size,
        max_position_embeddings=seq_length,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tie_embeddings,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def load(model: LlamaForCausalLM, weights: Mapping[str, torch.Tensor]) -> None:
    """The start weights have its names; a tied head is not among them."""
    missing, surplus = model.load_state_dict(weights, strict=False)
    if surplus or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"weights without a place: {surplus}; without a value: {missing}")
    model.tie_weights()


class HuggingFace(Loop):
    """The bare loop."""

    def build(self) -> nn.Module:
        return build(self.job.cell.shape, self.job.cell.seq_length)

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        load(self.module, weights)

    def loss(self, batch: Batch) -> torch.Tensor:
        answer = self.called(
            input_ids=batch.tokens, position_ids=batch.positions, labels=batch.labels, shift_labels=batch.labels, use_cache=False
        )
        return answer.loss


class Rows(torch.utils.data.Dataset):
    """The rows of all ranks, in the order in which accelerate gives them out, again and again."""

    def __init__(self, job: Job):
        ranks = [read_batches(job.folder, rank) for rank in range(job.cell.processes)]
        self.rows = []
        for step in range(len(ranks[0])):
            for index in range(job.cell.accumulation):
                for batches in ranks:
                    self.rows += self._rows(batches[step][index])

    @staticmethod
    def _rows(batch: Batch) -> list[dict]:
        """What the model is called with, of each row."""
        return [
            {"input_ids": batch.tokens[r], "position_ids": batch.positions[r], "labels": batch.labels[r]}
            | {"shift_labels": batch.labels[r]}
            for r in range(len(batch.tokens))
        ]

    def __len__(self) -> int:
        return 10**7

    def __getitem__(self, index: int) -> dict:
        return self.rows[index % len(self.rows)]


class HuggingFaceTrainer(Contestant):
    """The Trainer. It runs by itself: a callback at the end of a step waits for the next command."""

    def __init__(self, job: Job):
        super().__init__(job)
        self._module = build(job.cell.shape, job.cell.seq_length)
        load(self._module, start_weights(job))

    @property
    def module(self) -> nn.Module:
        return self._module

    def loss(self, batch: Batch) -> torch.Tensor:
        return HuggingFace.loss(self, batch)

    @property
    def called(self) -> nn.Module:
        return self._module

    def serve(self, control) -> None:
        cell, optimizer = self.job.cell, self.job.optimizer
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                use_cpu=True,
                max_steps=10**6,
                per_device_train_batch_size=cell.rows,
                gradient_accumulation_steps=cell.accumulation,
                learning_rate=optimizer.lr,
                lr_scheduler_type="constant",
                optim="adamw_torch_fused",
                adam_beta1=optimizer.beta1,
                adam_beta2=optimizer.beta2,
                adam_epsilon=optimizer.eps,
                weight_decay=optimizer.weight_decay,
                max_grad_norm=optimizer.grad_clip,
                train_sampling_strategy="sequential",
                remove_unused_columns=False,
                ddp_find_unused_parameters=False,
                logging_strategy="no",
                save_strategy="no",
                eval_strategy="no",
                report_to=[],
                disable_tqdm=True,
            )
            turns = Turns(control, self.clock)
            trainer = Told(model=self._module, args=arguments, train_dataset=Rows(self.job), callbacks=[turns])
            turns.trainer = trainer
            if turns.wait():
                trainer.train()


class Told(Trainer):
    """Keeps the loss of the last micro-batches, which the Trainer otherwise only tells when it logs."""

    last = 0.0

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.last += float(loss)
        return loss


class Turns(TrainerCallback):
    """Lets the Trainer take as many steps as it is told to, then waits."""

    def __init__(self, control, clock):
        self.control, self.clock, self.left, self.profile, self.trainer = control, clock, 0, None, None

    def wait(self) -> bool:
        """Returns when there are steps to take (True) or everything is over."""
        command = self.control.wait()
        if command is None:
            return False
        self.left = self.count = command["count"]
        if command["do"] == "profile":
            self.profile = profile(activities=[ProfilerActivity.CPU])
            self.profile.start()
        self.clock.begin()
        return True

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.end(self.trainer.last)
        self.trainer.last = 0.0
        self.left -= 1
        if self.left:
            return
        if self.profile is not None:
            self.profile.stop()
            answer, self.profile = summary(rows_of(self.profile, self.count)), None
            self.clock.take()
        else:
            answer = {"steps": self.clock.take()}
        self.control.answer(answer)
        control.should_training_stop = not self.wait()
