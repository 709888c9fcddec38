"""Every mutant must turn its check red. To add one, add an entry to MUTANTS; tests/mutants/mutants.py explains the fields.
Those of decisions are in test_decide_mutants.py."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from harness import RankFailure, run_ranks
from mutants import Mutant

LOADER, AGREEMENT = "unit/data/test_loader.py", "dist/test_data_agreement.py"
LAYERS, DECODER, MODEL = "dist/test_tensor_layers.py", "unit/model/test_decoder.py", "dist/test_tensor_model.py"
ENGINE, REWARDS, RESUME = "dist/test_engine.py", "dist/test_rewards.py", "dist/test_resume.py"
CONSOLE, PROTOCOL = "unit/console/test_console.py", "dist/test_console_ranks.py"


def _bias_on_every_rank(original):
    def forward(self, x):
        from mads.collectives import reduce_from_group

        return reduce_from_group(torch.nn.functional.linear(x, self.weight, self.bias), self.group)

    return forward


def _padding_is_valid(original):
    def begin(self, rows, weight, *rest):
        original(self, rows, weight, *rest)
        self.columns = replace(self.columns, valid=len(weight))

    return begin


def _not_reduced(original):
    from mads.collectives import Pending

    return lambda x, group: Pending(x, None)


def _untied(original):
    return lambda *args, tied=None, **rest: original(*args, **rest)


def _only_rank_0s_replicas_get_it(original):
    def broadcast_array(array, group, dtype):
        received = original(array, group, dtype)
        return received if torch.distributed.get_rank() == 0 else np.zeros_like(received)  # pp=2, tp=2: its dp group is [0]

    return broadcast_array


def _judged_after_learning(original):
    def step(self, weights, shares, statistics):
        from mads.agents.rules import standardised_gain

        updated, _ = original(self, weights, shares, statistics)
        return updated, standardised_gain(updated, statistics.mean, shares)

    return step


def _stale_position(original):
    return lambda self, round_, ids, position=0: original(self, round_, ids)


def _prefetched_counts_as_consumed(original):
    return lambda self: original(self) | {"position": self._scheduled // self.accumulation}


def _targets_cross_borders(original):
    def make_batch(rows, seq_length):
        batch = original(rows, seq_length)
        batch.labels[:, :-1] = torch.where(batch.segments[:, 1:] < 0, batch.labels[:, :-1], batch.tokens[:, 1:])
        return batch

    return make_batch


def _loss_over_local_tokens(original):
    return lambda self, batches, valid, *rest: original(self, batches, sum(b.valid_tokens for b in batches), *rest)


def _restored_by_subtraction(original):
    @contextmanager
    def shifted(self, direction, scale):
        def move(by):
            with torch.no_grad():
                for name, parameter in self._engine.parameters:
                    parameter.add_(direction[name], alpha=by)

        move(scale)
        yield
        move(-scale)

    return shifted


def _weights_only(original):
    return lambda self, parameter, key, value: original(self, parameter, key, value) if key == "weight" else None


def _idle_ranks_repeat_batch_0(original):
    return lambda self, rank, ranks: [0 if i is None else i for i in original(self, rank, ranks)]


MUTANTS = [
    Mutant(
        "f's backward does not reduce",
        "mads.tensor.column:start_all_reduce",
        _not_reduced,
        f"{LAYERS}:check_column",
        world=4,
    ),
    Mutant(
        "f's backward does not reduce, whole model",
        "mads.tensor.column:start_all_reduce",
        _not_reduced,
        f"{MODEL}:check_model",
        world=4,
        args=(False,),
    ),
    Mutant(
        "row bias added on every rank",
        "mads.tensor.layers:RowParallelLinear.forward",
        _bias_on_every_rank,
        f"{LAYERS}:check_row",
        world=4,
    ),
    Mutant(
        "row product reduced over the world",
        "mads.tensor.layers:reduce_from_group",
        lambda original: lambda x, group: original(x, torch.distributed.group.WORLD),
        f"{LAYERS}:check_row",
        world=4,
    ),
    Mutant(
        "average instead of sum",
        "mads.tensor.layers:reduce_from_group",
        lambda original: lambda x, group: original(x, group) / torch.distributed.get_world_size(group),
        f"{LAYERS}:check_embedding",
        world=4,
    ),
    Mutant(
        "fused weight cut as one block",
        "mads.tensor.layers:Layout",
        lambda original: lambda axis=None, parts=(), padded_from=None: original(axis, (), padded_from),
        f"{LAYERS}:check_column",
        world=4,
    ),
    Mutant(
        "embedding of a token elsewhere is not masked",
        "mads.tensor.layers:VocabParallelEmbedding._rows",
        lambda original: lambda self, tokens, weight: torch.nn.functional.embedding(tokens % weight.shape[0], weight),
        f"{LAYERS}:check_embedding",
        world=4,
    ),
    Mutant(
        "cross entropy normalises over the local vocabulary",
        "mads.tensor.cross_entropy:_Task._combine",
        lambda original: lambda self, own: own,
        f"{LAYERS}:check_cross_entropy",
        world=4,
    ),
    Mutant(
        "cross entropy counts the padded vocabulary",
        "mads.tensor.cross_entropy:_Task.__init__",
        _padding_is_valid,
        f"{LAYERS}:check_cross_entropy",
        world=4,
    ),
    Mutant(
        "every shard starts as the first",
        "mads.tensor.init:shard",
        lambda original: lambda full, layout, index, count: original(full, layout, 0, count),
        f"{LAYERS}:check_init",
        world=4,
    ),
    Mutant(
        "start values do not depend on the name",
        "mads.tensor.init:digest",
        lambda original: lambda *parts: 0,
        f"{DECODER}:check_r2_seeds_use_the_parameters_own_names",
    ),
    Mutant(
        "attention ignores the samples' borders",
        "mads.model.pieces:Segments.build",
        lambda original: classmethod(lambda cls, ids, *rest: original.__func__(cls, torch.zeros_like(ids), *rest)),
        f"{DECODER}:check_packed_losses_equal_losses_alone",
    ),
    Mutant(
        "positions are not reset inside a row",
        "mads.model.pieces:rope_tables",
        lambda original: (
            lambda positions, *rest: original(
                torch.arange(positions.shape[1]).expand_as(positions) * (1 + (positions > 3)), *rest
            )
        ),
        f"{DECODER}:check_packed_losses_equal_losses_alone",
    ),
    Mutant(
        "tied head with weights of its own",
        "mads.model.pieces:VocabParallelHead",
        _untied,
        f"{DECODER}:check_v8_tied_gradient_is_the_sum_of_both_uses",
    ),
    Mutant(
        "ids are broadcast to the data-parallel group only",
        "mads.console.exchange:broadcast_array",
        _only_rank_0s_replicas_get_it,
        f"{PROTOCOL}:check_ids_reach_every_rank",
        world=4,
        args=({"pp": 2, "tp": 2},),
        red=("SelectionMismatchError",),
    ),
    Mutant(
        "a rank keeps its damage to itself",
        "mads.console.exchange:all_gather_json",
        lambda original: lambda value, group: [value],
        f"{PROTOCOL}:check_damage_is_named",
        world=4,
        args=(2, 1, 163),
    ),
    Mutant(
        "theta follows weights that have seen the rewards",
        "mads.agents.rules:MadsRule.step",
        _judged_after_learning,
        f"{CONSOLE}:test_x7_mads_judges_before_learning_and_moves_theta_by_hedge",
    ),
    Mutant(
        "rewards with the opposite sign",
        "mads.console.console:scale_rewards",
        lambda original: lambda *arguments: -original(*arguments),
        f"{CONSOLE}:test_x7_paper_rounds_equal_a_numpy_transcription",
    ),
    Mutant(
        "ranks of one replica read the rows of different ones",
        "mads.topology:Topology.coordinate",
        lambda original: lambda self, axis: self.rank % self.size(axis),
        f"{AGREEMENT}:check_d1_ranks_of_a_replica_see_the_same_tokens",
        world=4,
        args=({"dp": 2, "tp": 2},),
    ),
    Mutant(
        "ledger not advanced",
        "mads.data.ledger:Ledger.consume",
        lambda original: lambda self, positions: None,
        f"{LOADER}:check_alone",
        args=("check_d5",),
    ),
    Mutant(
        "stale index: a resumed loader starts its round again",
        "mads.data.loader:Loader.begin_round",
        _stale_position,
        f"{LOADER}:check_alone",
        args=("check_d4", 0),
    ),
    Mutant(
        "batches packed ahead count as consumed",
        "mads.data.loader:Loader.state",
        _prefetched_counts_as_consumed,
        f"{LOADER}:check_alone",
        args=("check_d4_state",),
    ),
    Mutant(
        "every data-parallel rank reads the same rows",
        "mads.data.loader:Loader._own_rows",
        lambda original: lambda self, a: tuple(row - self.dp_rank * self.micro_batch_size for row in original(self, a)),
        f"{LOADER}:check_alone",
        args=("check_d2",),
    ),
    Mutant(
        "a target crosses the border of two samples",
        "mads.data.workers:make_batch",
        _targets_cross_borders,
        f"{LOADER}:check_alone",
        args=("check_d3",),
    ),
    Mutant(
        "loss over the rank's own valid tokens",
        "mads.train.engine:Engine.train_step",
        _loss_over_local_tokens,
        f"{ENGINE}:check_engine",
        world=2,
        args=([1], 1),
    ),
    Mutant(
        "the reward direction points the other way",
        "mads.reward.influence:make_direction",
        lambda original: lambda vector, totals: original({n: -t for n, t in vector.items()}, totals),
        f"{REWARDS}:check_exactness",
        world=2,
        args=([1], "ghost", "float32", 0.9999, 1),
    ),
    Mutant(
        "a finite difference is undone by subtraction",
        "mads.train.reward_model:EngineRewardModel.shifted",
        _restored_by_subtraction,
        f"{REWARDS}:check_trace",
        world=2,
        args=([1], ("finite_difference",) * 2, 1),
        red=("RuntimeError",),
    ),
    Mutant(
        "parameters that ZeRO 3 has gathered hide the shift",
        "mads.train.reward_model:EngineRewardModel._forget_gathered",
        lambda original: lambda self: None,
        f"{REWARDS}:check_trace",
        world=2,
        args=([3], ("finite_difference",) * 2, 1),
    ),
    Mutant(
        "a reward pass leaves its gradients behind",
        "mads.train.engine:Engine.discard_gradients",
        lambda original: lambda self: None,
        f"{REWARDS}:check_trace",
        world=2,
        args=([3], ("ghost",) * 2, 1),
    ),
    Mutant(
        "the embedding adds nothing to ghost products",
        "mads.tensor.layers:VocabParallelEmbedding.weight_derivative",
        lambda original: lambda self, *arguments: torch.zeros_like(original(self, *arguments)),
        "unit/train/test_ghost.py:test_each_layer_adds_its_own_part",
    ),
    Mutant(
        "idle ranks add a reference batch a second time",
        "mads.eval.losses:FixedBatches.share_of",
        _idle_ranks_repeat_batch_0,
        f"{REWARDS}:check_exactness",
        world=2,
        args=([1], "ghost", "float32", 0.9999, 1, 100),
    ),
    Mutant(
        "moments are not loaded",
        "mads.train.optimizer_state:PartitionedState.load",
        _weights_only,
        f"{RESUME}:check_resumed_run",
        world=2,
        args=([],),
    ),
    Mutant(
        "the optimizer's step count is not restored",
        "mads.train.optimizer_state:OptimizerState.prepare_load",
        lambda original: lambda self, steps: original(self, min(steps, 1)),
        f"{RESUME}:check_resumed_run",
        world=2,
        args=([],),
    ),
    Mutant(
        "a resumed run starts its round again",
        "mads.data.loader:Loader.begin_round",
        _stale_position,
        f"{RESUME}:check_resumed_run",
        world=2,
        args=([],),
    ),
    Mutant(
        "the ledger is not restored",
        "mads.data.ledger:Ledger.load",
        lambda original: classmethod(lambda cls, path, size, start, stop, **rest: cls(size, start, stop)),
        f"{RESUME}:check_resumed_run",
        world=2,
        args=([],),
    ),
    Mutant(
        "the agents' memories are not restored",
        "mads.agents.agent:AgentBase.load_state",
        lambda original: lambda self, state: None,
        f"{RESUME}:check_resumed_run",
        world=2,
        args=([],),
    ),
]


def outcome(mutant: Mutant) -> str | None:
    """Run the mutant's check with the mutant applied, in this process; the kinds of exception it went red with, or None."""
    check = mutant.check_function()
    with mutant.applied():
        try:
            check(*mutant.args)
        except (Exception, pytest.fail.Exception) as error:  # which kinds count is judged by the caller
            return " ".join(kind.__name__ for kind in type(error).__mro__) + f": {error}"
    return None


def run_mutated(name: str) -> str | None:
    return outcome(next(m for m in MUTANTS if m.name == name))


def check_caught(mutant: Mutant, run_mutated: Callable[[str], str | None]) -> None:
    """The mutant's check goes red. run_mutated: finds a mutant by name and gives its outcome; for workers."""
    mutant.check_function()  # its folder is on sys.path now, which the harness hands to the workers
    if mutant.world == 1:
        outcomes = [outcome(mutant)]
    else:
        try:
            outcomes = run_ranks(mutant.world, run_mutated, mutant.name, timeout=20)
        except RankFailure as failure:  # some ranks may have gone red and left the others waiting
            outcomes = list(failure.answers.values())
            assert any(outcomes), f"no rank of {mutant.check} went red: {failure}"
    reds = [o for o in outcomes if o is not None]
    assert reds, f"{mutant.check} stayed green although {mutant.name}"
    wrong = [o for o in reds if not any(kind in o.split(":")[0].split() for kind in mutant.red)]
    assert not wrong, f"{mutant.check} failed for another reason than {mutant.red}: {wrong[0]}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_caught(mutant):
    check_caught(mutant, run_mutated)


def test_a_mutant_that_breaks_nothing_leaves_its_check_green():
    check = f"{DECODER}:check_packed_losses_equal_losses_alone"
    assert outcome(Mutant("nothing is broken", "mads.kernels.packed_attention:allowed", lambda original: original, check)) is None


def test_names_are_unique():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
