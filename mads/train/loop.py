"""The training loop: select if due, next batch, one optimizer step, counters, callbacks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from mads import collectives
from mads.checkpoint import canonical
from mads.checkpoint.finding import search, set_aside
from mads.checkpoint.manifest import Keep
from mads.checkpoint.saver import Saver
from mads.config.compose import differences, trajectory
from mads.config.rounds import round_steps
from mads.console.choose import own_slice
from mads.data.ledger import Ledger
from mads.data.pool import Pool
from mads.data.schema import DataError
from mads.launch import exits
from mads.logging.metrics import refuse_run_links
from mads.model.shape import flops_per_token
from mads.noise import hash64
from mads.reward.build import mix_tokens
from mads.topology import Topology
from mads.train.branch import branch_point
from mads.train.growth import PoolEntry, grow, open_history
from mads.train.initial import initial_weights, load_initial
from mads.train.invariants import ReplicaGuard
from mads.train.journal import Journal
from mads.train.ledgers import save_ledger
from mads.train.profile import StepProfiler
from mads.train.pulse import Pulse
from mads.train.schedule import learning_rate
from mads.train.setup import build_parts
from mads.train.signals import Notice, Preemption


class ResumeError(RuntimeError):
    """The run folder holds a run that this configuration does not continue. The message names every difference."""


class Trainer:
    """One run, on this rank. `run` goes on from the newest checkpoint in the run folder, if there is one; a branch begins with a
    checkpoint of another run.

    Args:
        config: a validated configuration.
        topology: the grid of ranks.
        device: where this rank computes.
        notice: of signals to this process; None: it takes none.
        pulse: what a watchdog looks at; None: nobody does.
    """

    def __init__(
        self,
        config: DictConfig,
        topology: Topology,
        device: torch.device,
        notice: Notice | None = None,
        pulse: Pulse | None = None,
    ):
        self.config, self.topology, self.device = config, topology, device
        self.root = Path(config.run_dir)
        self.step = 0
        self.tokens = 0
        self.round_start = 0
        self.saved_step = 0
        self.notice = notice
        self.preemption = Preemption(notice, partial(collectives.start_sum, group=topology.group("control")))
        self.pulse = pulse or Pulse()
        self.journal = Journal(config, topology, self.pulse)
        self.saver = Saver(
            self.root / "checkpoints",
            topology,
            Keep(config.checkpoint.keep_last, tuple(config.checkpoint.keep_steps), config.checkpoint.keep_every),
            config.checkpoint.max_file_bytes,
            config.checkpoint.asynchronous,
            config.parallel.control_timeout_s / 2,  # sooner than the ranks that wait for rank 0 give up
            self.journal.message,
            self.pulse.beat,
        )
        checkpoint = self._find_checkpoint()  # before the model is built: other settings are told at once
        trunk = None
        if checkpoint is None and config.train.branch_from is not None:
            checkpoint = trunk = branch_point(config, topology)
        initial = None
        if checkpoint is None and config.train.init_from is not None:
            initial = initial_weights(config, topology, self.journal.message)
        self.history = open_history(self.root, topology, fresh=checkpoint is None, trunk=trunk)
        self.parts = build_parts(config, topology, device, self.journal.message, self._known_shards(checkpoint), self.pulse)
        resumed = self._resume(checkpoint) if checkpoint else None
        if initial is not None:
            load_initial(initial, self.parts.engine, topology)
            self.journal.message(f"start weights: {config.train.init_from}")
        self.profiler = StepProfiler(config.logging.profile, self.root, topology.rank, device, self.journal.message)
        self.guard = ReplicaGuard(self.parts.engine, config.train.invariant_interval)
        if self.finished:
            self.journal.message(
                f"{self.root} is finished: {self.step} of {config.train.steps} steps; choose another run_dir to train again"
            )
        else:
            self.journal.open(resumed, self.tokens, self.parts)
            if topology.rank == 0 and not self.history.entries:
                self.history.append(PoolEntry.of(0, self.parts.pool, len(self.parts.heldout.pool.shards)))

    @property
    def finished(self) -> bool:
        return self.step >= self.config.train.steps

    # ------------------------------------------------------------ the loop

    def run(self, until: int | None = None) -> None:
        """Train up to step `until` (default: train.stop_at, or train.steps), then save and close."""
        end = self.config.train.stop_at or self.config.train.steps
        until = end if until is None else until
        try:
            if self.step == 0 and not self.preemption.agreed():
                self._evaluate()
            while self.step < until and not self.preemption.stopping:
                self.profiler.before(self.step + 1)
                if self._selection_due():
                    if self.preemption.agreed():  # a reward pass may take longer than the grace of a cluster
                        break
                    with self.journal.selecting(), self.pulse.during("selection"):
                        self._select()
                self.preemption.ask()
                self._train_one_step()
                self._after_step(last=self.preemption.answer() or self.step == until)
                self.profiler.after(self.step)
            if self.preempted and self.saved_step != self.step:
                self._save()
            with self.journal.phase("checkpoint"):
                self.saver.wait()
        except BaseException:
            self.saver.leave()
            raise
        self._tell_saves()
        if self.preempted:
            self._tell_preemption()
        self.profiler.close(self.step)
        self.parts.loader.close()
        self.journal.close(self.step, self.tokens, self.step >= end)

    @property
    def preempted(self) -> bool:
        """A signal to some rank stopped the run before its end. The same on all ranks."""
        return self.preemption.stopping and not self.finished

    def _tell_preemption(self) -> None:
        signal = f" by {self.notice.name}" if self.notice and self.notice.name else " by a signal to another rank"
        saved = f"checkpoint {self.step} is saved and the same command goes on from it" if self.step else "no step was taken"
        self.journal.message(f"told to stop{signal}: {saved}; exit code {exits.PREEMPTED}")

    def _train_one_step(self) -> None:
        config, parts = self.config, self.parts
        with self.journal.phase("loader"):
            batch = parts.loader.next()
        with self.journal.phase("train"):
            rate = learning_rate(self.step, config.train.steps, config.optim.lr, config.schedule)
            result = parts.engine.train_step(batch.micro_batches, batch.valid_tokens, rate, self.step)
        parts.ledger.consume(batch.sample_positions)
        self.batch = batch
        self.step += 1
        self.pulse.stepped(self.step)
        self.tokens += batch.tokens
        if self.step % config.train.log_interval == 0 or self.step in (1, config.train.steps):
            self.journal.train(self.step, self.tokens, result, rate, parts.console.round - 1)

    def _after_step(self, last: bool) -> None:
        config = self.config
        if self.guard.due(self.step):
            with self.journal.phase("invariants"):
                self.guard.check(self.step, self.batch, self.parts.console.pending)
        if self.step % config.train.eval_interval == 0 or self.step == config.train.steps:
            self._evaluate()
        due = config.checkpoint.interval and self.step % config.checkpoint.interval == 0
        if last or due or self.step in config.checkpoint.keep_steps:
            self._save()
        self._tell_saves()

    # ------------------------------------------------------------ selection

    def _selection_due(self) -> bool:
        """At the end of a round's steps; sooner if the decided samples ran out (a pool smaller than an interval)."""
        round_, steps_in_round = self.parts.console.round, self.step - self.round_start
        return round_ == 0 or steps_in_round >= round_steps(self.config.selection, round_ - 1) or self.parts.loader.exhausted

    def _select(self) -> None:
        config, parts = self.config, self.parts
        grown = grow(parts, self.history, config.data.dir, config.train.grow_pool, self.topology)
        rewards = None
        if parts.console.needs_rewards():
            probes = parts.console.draw_probes()
            rate = learning_rate(self.step, config.train.steps, config.optim.lr, config.schedule)
            samples = parts.pool.tokens(probes.positions)
            with self.pulse.during("rewards"):
                rewards = parts.rewarder(probes, samples, parts.console.round, rate, self._current_mix())
            share = rewards.direction["flops"] / self._interval_flops()
            rewards.direction["share of the interval"] = share
            self.journal.message(f"round {parts.console.round}: rewards cost {share:.2%} of the training of an interval")
        interval = min(round_steps(config.selection, parts.console.round), config.train.steps - self.step)
        budget = int(interval * config.train.global_batch_size * config.data.seq_length * (1 + config.selection.margin))
        ids, record = parts.console.decide(rewards, parts.ledger.counts, budget, self.step, self.tokens)
        parts.loader.begin_round(parts.console.round - 1, ids)
        self.round_start = self.step
        if grown and record:
            record.notes.append(grown)
            self.journal.message(f"round {record.round}: {grown}")
        self.journal.decision(record, ids)

    def _current_mix(self) -> list[np.ndarray]:
        """Samples of the decision in use, drawn by hash, for rewards that compare labels beside them."""
        config, console, pool = self.config, self.parts.console, self.parts.pool
        wanted = mix_tokens(config.reward, config.data.seq_length)
        if not wanted or not len(console.pending):
            return []
        order = np.argsort(hash64(config.train.seed, "current_mix", console.round, console.pending), kind="stable")
        positions = pool.positions_of(console.pending[order])
        enough = np.searchsorted(np.cumsum(pool.lengths[positions]), wanted) + 1
        return pool.tokens(positions[:enough])

    def _interval_flops(self) -> float:
        """Of the training of the round to come, if it is as long as an interval."""
        config = self.config
        tokens = round_steps(config.selection, self.parts.console.round) * config.train.global_batch_size * config.data.seq_length
        return tokens * flops_per_token(config.model, config.data.seq_length)

    def _evaluate(self) -> None:
        with self.journal.phase("evaluation"):
            losses = self.parts.heldout.evaluate()
        self.journal.evaluation(self.step, self.tokens, losses)

    # ------------------------------------------------------------ checkpoint and resume

    def _save(self) -> None:
        parts = self.parts
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "round_start": self.round_start,
            "loader": parts.loader.state(),
            "attributes": {name: parts.pool.attribute_fingerprint(name) for name in parts.pool.attributes},
            "console": parts.console.state(),
            "trajectory": trajectory(self.config),
            "zero_stage": self.config.parallel.zero_stage,
        }
        with self.journal.phase("checkpoint"):
            self.saver.save(
                self.step,
                parts.engine,
                state,
                {"pending_ids": parts.console.pending},
                {"ledger.bin": lambda path: save_ledger(parts.ledger, path, self.topology)},
            )
        self.saved_step = self.step

    def _tell_saves(self) -> None:
        """Write down the saves that have ended since the last step."""
        for saved in self.saver.reports():
            self.journal.checkpoint(saved)

    def _find_checkpoint(self) -> Path | None:
        """The newest whole checkpoint in the run folder, verified by rank 0, which sets damaged ones before it aside; None for a
        fresh run. Nothing was written there before. Collective.

        Raises:
            DataError: on every rank, if there are checkpoints and all are damaged, or the folder holds a link that a run would
                write through.
            ResumeError: on every rank, if it is of a run with other settings.
        """
        name, changed, error = None, [], None
        if self.topology.rank == 0:
            try:
                refuse_run_links(self.root)
                found = search(self.root / "checkpoints")
                if found.path is not None:
                    name = found.path.name
                    changed = differences(trajectory(self.config), canonical.read_state(found.path)[0]["trajectory"])
                    if not changed and (told := set_aside(self.root / "checkpoints", found)):
                        self.journal.warn(told)
            except Exception as caught:  # told to the other ranks, then raised
                error = f"{caught}"
        name, changed, error = collectives.broadcast_json([name, changed, error], self.topology.group("control"))
        if error:
            raise DataError(error)
        if changed:
            raise ResumeError(
                f"{self.root} holds a run with other settings:\n  "
                + "\n  ".join(changed)
                + "\nstart with the same settings to continue it, or choose another run_dir"
            )
        return self.root / "checkpoints" / name if name else None

    def _known_shards(self, checkpoint: Path | None) -> tuple[int | None, int | None]:
        """How many shards of the training and of the held-out part the run knew at the checkpoint; of a fresh run all are new."""
        if checkpoint is None:
            return None, None
        heldout = self.history.entries[0].heldout_shards if self.history.entries else None
        return canonical.read_state(checkpoint)[0]["loader"]["shards"], heldout

    def _resume(self, path: Path) -> int:
        """Load a checkpoint; returns its step."""
        parts = self.parts
        state, arrays = canonical.read_state(path)
        parts.loader.check_state(state["loader"])
        _check_attributes(state["attributes"], parts.pool)
        canonical.load(path, parts.engine, self.topology, verified=True)
        parts.console.load_state(state["console"], arrays["pending_ids"])
        own = own_slice(parts.pool, self.topology)
        parts.ledger = Ledger.load(canonical.vouched(path, "ledger.bin"), len(parts.pool), *own, verified=True)
        self.step, self.tokens, self.round_start = state["step"], state["tokens"], state["round_start"]
        self.pulse.at(self.step)
        self.saved_step = self.step if path.parent.parent == self.root else 0
        parts.loader.begin_round(state["loader"]["round"], arrays["pending_ids"], state["loader"]["position"])
        verb = "resuming" if path.parent.parent == self.root else "branching from"
        self.journal.message(
            f"{verb} {path.name}: step {self.step}, round {parts.console.round - 1}, "
            f"{parts.loader.tokens_left:,} tokens of the decision left"
        )
        return self.step


def _check_attributes(recorded: dict[str, str], pool: Pool) -> None:
    """The columns that decisions are made from must be those of the checkpoint; further ones may have been added.

    Raises:
        DataError: naming those that are not.
    """
    changed = [n for n, value in recorded.items() if n not in pool.attributes or pool.attribute_fingerprint(n) != value]
    if changed:
        raise DataError(
            f"attributes {changed} were removed or labelled anew since the checkpoint; restore them, or start a new run with "
            "another run_dir"
        )
