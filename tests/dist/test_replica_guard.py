"""The runtime checks on real ranks: one changed bit, another batch or another decision on one rank is named on all ranks."""

import numpy as np
import pytest
import torch
from harness import run_ranks

NAMES = {"norm": "layers.0.mlp_norm.weight", "row": "layers.1.mlp.down.weight"}
TENSOR, DATA = "tensor-parallel ranks replicate differs", "data-parallel ranks replicate differs"


def check_breaks(sizes, breaks):
    """For every (kind, rank): the message on this rank when that rank alone is broken; between them all is well."""
    import guard_cases as cases

    from mads.collectives import ReplicaMismatchError
    from mads.train.invariants import ReplicaGuard

    engine = cases.stages_engine(sizes) if sizes.get("pp", 1) > 1 else cases.decoder_engine(sizes)
    topology, messages = engine.topology, []
    guard = ReplicaGuard(engine, 10)
    ids = np.arange(5)
    replica = topology.coordinate("dp")
    guard.check(1, cases.step_batch(replica), ids)
    for kind, odd in breaks:
        here = topology.rank == odd
        name = NAMES.get(kind, kind)
        batch, pending, step = cases.step_batch(replica), ids, 2
        if here and kind == "tokens":
            batch = cases.step_batch(replica, shift=1)
        elif here and kind == "batch":
            batch = cases.step_batch(replica, ids=np.arange(7)[::-1])
        elif here and kind == "decision":
            pending = ids[::-1]
        elif here and kind == "step":
            step = 3
        elif here:
            cases.flip(engine, name)
        with pytest.raises(ReplicaMismatchError) as caught:
            guard.check(step, batch, pending)
        messages.append(str(caught.value))
        if here and kind not in ("tokens", "batch", "decision", "step"):
            cases.flip(engine, name)
        guard.check(2, cases.step_batch(replica), ids)
    return messages


def told(sizes, *breaks):
    """The messages of all breaks, one each, the same on all ranks but for the step."""
    world = int(np.prod(list(sizes.values())))
    by_rank = run_ranks(world, check_breaks, sizes, breaks)
    for rank, messages in enumerate(by_rank):
        for (kind, odd), ours, theirs in zip(breaks, messages, by_rank[0]):
            assert ours.splitlines()[1:] == theirs.splitlines()[1:], (rank, kind, odd)
    return by_rank[0]


def test_z3_a_changed_bit_on_a_data_parallel_replica_is_named():
    first, other = told({"dp": 2}, ("row", 1), ("norm", 0))
    assert f"{DATA}, layers.1.mlp.down.weight: ranks [0 (pp=0 dp=0 cp=0 tp=0)]: 0x" in first and "ranks [1 (pp=0 dp=1" in first
    assert f"{DATA}, layers.0.mlp_norm.weight" in other and TENSOR not in other
    (three,) = told({"dp": 4}, ("row", 2))
    assert "ranks [0, 1, 3]: 0x" in three and "ranks [2 (pp=0 dp=2 cp=0 tp=0)]: 0x" in three  # most agree: the odd one is known


def test_z3_a_changed_bit_over_context_parallel_ranks_is_named():
    (message,) = told({"cp": 2}, ("row", 1))
    assert f"{DATA}, layers.1.mlp.down.weight" in message and "ranks [1 (pp=0 dp=0 cp=1 tp=0)]" in message


def test_r3_a_changed_bit_of_a_tensor_parallel_replica_is_named():
    (message,) = told({"tp": 2}, ("norm", 1))
    assert f"{TENSOR}, layers.0.mlp_norm.weight" in message and "ranks [1 (pp=0 dp=0 cp=0 tp=1)]" in message
    assert "row" not in message and DATA not in message


def test_r3_with_two_axes_the_rank_in_every_difference_is_told():
    norm, row = told({"dp": 2, "tp": 2}, ("norm", 2), ("row", 3))
    assert TENSOR in norm and DATA in norm
    assert "every difference of layers.0.mlp_norm.weight has ranks [2 (pp=0 dp=1 cp=0 tp=0)] in it" in norm
    assert TENSOR not in row and "ranks [1 (pp=0 dp=0 cp=0 tp=1)]" in row and "ranks [3 (pp=0 dp=1 cp=0 tp=1)]" in row
    assert "rank 0" not in row and "ranks [0" not in row


@pytest.mark.parametrize("sizes, odd", [({"dp": 2}, 1), ({"tp": 2}, 0), ({"dp": 2, "tp": 2}, 3)], ids=str)
def test_d1_another_batch_decision_or_step_on_one_rank_is_named(sizes, odd):
    batch, decision, step, *tokens = told(
        sizes, ("batch", odd), ("decision", odd), ("step", odd), *([("tokens", odd)] if "tp" in sizes else [])
    )
    assert "  the global batch differs: " in batch and f"ranks [{odd} (" in batch
    assert "  the decision differs: " in decision and f"ranks [{odd} (" in decision
    assert "  the step differs: " in step and ": 0x3" in step and ": 0x2" in step
    for message in tokens:
        assert "  the micro-batches of a model replica differs: " in message and f"ranks [{odd} (" in message


def check_shared_batch():
    import guard_cases as cases

    from mads.collectives import ReplicaMismatchError
    from mads.train.invariants import ReplicaGuard

    guard = ReplicaGuard(cases.decoder_engine({"dp": 2}), 10)
    with pytest.raises(ReplicaMismatchError, match=r"replicas trained on the same micro-batches: ranks \[0 .* 1 .*\]"):
        guard.check(1, cases.step_batch(0), np.arange(5))
    empty = cases.step_batch(0)
    empty.micro_batches[0].labels.fill_(-100)  # nothing to train on: both replicas may have that
    guard.check(1, empty, np.arange(5))


def test_d2_replicas_that_train_on_the_same_batch_are_named():
    run_ranks(2, check_shared_batch)


@pytest.mark.parametrize(
    "sizes, odd", [({"pp": 2}, 1), ({"pp": 2, "tp": 2}, 3), ({"pp": 2, "tp": 2}, 0), ({"pp": 4}, 3)], ids=str
)
def test_p3_a_tied_weight_that_differs_between_the_stages_is_named(sizes, odd):
    message, norm = told(sizes, ("embedding.weight", odd), ("tokens", 0))
    assert "a tied weight differs between the first and the last pipeline stage, embedding.weight: " in message
    assert f"{odd} (pp=" in message and TENSOR not in message and DATA not in message
    assert message.count("embedding.weight") == 1  # the pair of the odd rank, and no other pair
    assert "the micro-batches of a model replica differs" in norm


def check_copied_shards(sizes):
    import guard_cases as cases

    from mads.collectives import ReplicaMismatchError
    from mads.train.invariants import ReplicaGuard

    engine = cases.decoder_engine(sizes)
    topology = engine.topology
    replica = topology.coordinate("dp")
    weight = dict(engine.parameters)[cases.ROW_PARALLEL].data
    first = torch.distributed.get_process_group_ranks(topology.group("tp"))[0]
    torch.distributed.broadcast(weight, first, group=topology.group("tp"))
    guard = ReplicaGuard(engine, 10)
    weight.add_(topology.coordinate("tp"))  # a step has moved them apart, as with an embedding's shards
    with pytest.raises(ReplicaMismatchError) as caught:
        guard.check(1, cases.step_batch(replica), np.arange(5))
    guard.check(2, cases.step_batch(replica), np.arange(5))  # of start values: told once
    weight.zero_()
    ReplicaGuard(engine, 10).check(1, cases.step_batch(replica), np.arange(5))  # zeros may be equal
    return str(caught.value)


@pytest.mark.parametrize("sizes", [{"tp": 2}, {"dp": 2, "tp": 2}, {"tp": 4}], ids=str)
def test_r2_shards_that_start_as_copies_of_each_other_are_named(sizes):
    for message in run_ranks(int(np.prod(list(sizes.values()))), check_copied_shards, sizes):
        assert "tensor-parallel shards of a parameter are copies of each other, layers.1.mlp.down.weight: ranks [0 (" in message
        assert message.count("are copies of each other") == sizes.get("dp", 1)


def check_real_engine(grid, zero, name, odd):
    """A DeepSpeed engine: two steps pass the checks; then a bit of what one rank holds of a parameter changes."""
    import layouts
    import model_support as support

    from mads.collectives import ReplicaMismatchError
    from mads.data.loader import StepBatch
    from mads.train.invariants import ReplicaGuard

    built = layouts.make(grid, zero, "model.tie_embeddings=true")
    topology, ids = built.topology, np.arange(3)
    guard = ReplicaGuard(built.engine, 10)
    for step in (1, 2):
        rows = layouts.rows_of_step(step)
        micro, valid = support.micro_batches(
            rows, topology.coordinate("dp"), topology.size("dp"), built.config.train.micro_batch_size
        )
        batch = StepBatch(micro, valid, ids, ids, valid)
        built.engine.train_step(micro, valid, 1e-3)
        guard.check(step, batch, ids)
    if topology.rank == odd:
        parameter = dict(built.engine.parameters)[name]
        piece = parameter.ds_tensor if zero == 3 else parameter.data
        piece.flatten().view(torch.int32)[0] ^= 1
    with pytest.raises(ReplicaMismatchError) as caught:
        guard.check(3, batch, ids)
    return str(caught.value)


@pytest.mark.parametrize("zero", [1, 3])
def test_r3_z3_an_engine_passes_until_a_bit_changes(zero):
    for message in run_ranks(4, check_real_engine, {"dp": 2, "tp": 2}, zero, "norm.weight", 1, timeout=180):
        assert f"{TENSOR}, norm.weight" in message and "ranks [1 (pp=0 dp=0 cp=0 tp=1)]" in message
        assert (DATA in message) == (zero < 3)  # ZeRO 3 keeps no data-parallel replica to compare with


def test_p3_a_pipeline_engine_passes_until_its_tied_copy_changes():
    for message in run_ranks(4, check_real_engine, {"pp": 2, "tp": 2}, 1, "embedding.weight", 3, timeout=180):
        assert "first and the last pipeline stage, embedding.weight: ranks [1 (pp=0 dp=0 cp=0 tp=1)]: 0x" in message
        assert "ranks [3 (pp=1 dp=0 cp=0 tp=1)]: 0x" in message and "1 difference between ranks" in message
