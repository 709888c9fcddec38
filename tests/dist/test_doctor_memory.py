"""What the doctor estimates against what two ranks really hold: activations of every cut, and DeepSpeed's buffers."""

import gc

import pytest
import torch
from harness import run_ranks


def check_activations(cases):
    from saved_bytes import counted, model_config, setting
    from topologies import topology

    from mads.doctor.activations import layer_bytes
    from mads.model.placement import Placement

    seen = 0
    for tp, cp, sequence_parallel, recompute, dropout in cases:
        here = topology(tp=tp, cp=cp)
        placement = Placement(here.group("tp"), here.group("cp"), sequence_parallel, recompute=recompute)
        config = model_config(hidden_dropout=dropout)
        layer, _ = counted(config, placement, draws=torch.arange(2) if dropout else None)
        s = setting(config, tp=tp, cp=cp, sequence_parallel=sequence_parallel, recompute=recompute)
        assert layer_bytes(s) == pytest.approx(layer, rel=1e-3), (tp, cp, sequence_parallel, recompute, dropout)
        seen += 1
    return seen


CASES = [
    (tp, cp, sp, recompute, dropout)
    for tp, cp, sp in ((2, 1, False), (2, 1, True), (1, 2, False))
    for recompute, dropout in (("none", 0.0), ("none", 0.1), ("selective", 0.0), ("full", 0.1))
]


def test_what_a_layer_keeps_on_each_rank_of_every_cut():
    assert run_ranks(2, check_activations, CASES, timeout=120) == [len(CASES)] * 2


def _storages(known=()):
    """Address -> storage, for every one that a live tensor has. Whoever keeps the result keeps the addresses from being used
    again for other tensors, which would then count as known."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        try:
            if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
                storage = thing.untyped_storage()
                found[storage.data_ptr()] = storage
        except (ReferenceError, RuntimeError):
            continue
    return {address: storage for address, storage in found.items() if address not in known}


def _bytes(storages):
    return sum(storage.nbytes() for storage in storages.values())


def _look_before_the_step(engine, look):
    run = engine._run

    def watched(*arguments):
        *first, before_step = arguments
        run(*first, lambda total: (look(), before_step(total)))

    engine._run = watched


def check_states(cases):
    import model_support as support
    import torch.distributed as dist

    from mads.doctor.states import model_states

    rank, world = dist.get_rank(), dist.get_world_size()
    rows = support.global_batch(4 * world, seed=1)
    micro, valid = support.micro_batches(rows, rank, world)
    for stage, dtype in cases:
        known = _storages()
        # Buckets that hold the largest weight; weights of a size that ZeRO 3 would keep whole are cut up too.
        options = {2: {"reduce_bucket_size": 1_000_000}, 3: {"reduce_bucket_size": 1_000_000}}.get(stage, {})
        options |= {"stage3_param_persistence_threshold": 1} if stage == 3 else {}
        overrides = [f"parallel.zero_options.{key}={value}" for key, value in options.items()]
        built = support.make_engine(stage, dtype=dtype, accumulation=2, overrides=["model=tiny", *overrides])
        engine, counted = built.engine, []
        engine.train_step(micro, valid, 1e-3)  # the moments exist after it
        _look_before_the_step(engine, lambda known=known, counted=counted: counted.append(_bytes(_storages(known))))
        engine.train_step(micro, valid, 1e-3)
        shapes = [shape.numel() for shape in engine.logical_shapes.values()]
        expected = model_states(sum(shapes), max(shapes), world, built.config.parallel, dtype == torch.bfloat16)
        buckets = expected.buckets if stage == 3 else 0  # ZeRO 2 has given its buckets back by then
        assert counted[-1] == pytest.approx(expected.resident + buckets, rel=0.03), (stage, dtype)
        del engine, built
    return len(cases)


def test_z1_states_are_what_deepspeed_holds_when_the_backward_pass_ends():
    cases = [(stage, torch.bfloat16) for stage in (0, 1, 2, 3)] + [(0, torch.float32), (2, torch.float32)]
    assert run_ranks(2, check_states, cases, timeout=180) == [len(cases)] * 2
