"""Numbers that are not finite (G4), bf16 wrappers (Z2), offloading, and the ranks that a gradient is summed over (Z1, Z3), at
layouts with tensor, context and pipeline parallelism."""

import math

import pytest
import torch
from harness import run_ranks


def check_non_finite(grid, zero, more):
    """A loss, then a gradient, not finite on the last rank alone: all ranks raise, nothing changed, and training goes on."""
    import layouts
    import model_support

    from mads.train.interface import NonFiniteError

    built = layouts.make(grid, zero, *more)
    layouts.step(built, layouts.rows_of_step(0), 1e-3)
    before = layouts.everything(built)
    rank, world = built.topology.rank, built.topology.world_size
    layer = next(m for m in built.engine.module.modules() if type(m).__name__ == "DecoderLayer")
    handle = layer.register_forward_hook(lambda m, i, o: o * float("nan") if rank == world - 1 else o)
    with pytest.raises(NonFiniteError, match="loss"):
        layouts.step(built, layouts.rows_of_step(1), 1e-3)
    handle.remove()
    handle = layer.register_forward_hook(lambda m, i, o: model_support.infinite_backward(o) if rank == world - 1 else o)
    with pytest.raises(NonFiniteError, match="norm"):
        layouts.step(built, layouts.rows_of_step(1), 1e-3)
    handle.remove()
    after = layouts.everything(built)
    assert all(torch.equal(after[k], before[k]) for k in before if k != "counters")
    again = layouts.make(grid, zero, *more)
    layouts.step(again, layouts.rows_of_step(0), 1e-3)
    ours, theirs = (layouts.step(x, layouts.rows_of_step(1), 1e-3) for x in (built, again))
    assert ours == theirs  # the failed steps left nothing behind


FULL = pytest.mark.full
LAYOUTS = [
    ({"tp": 2}, 1, []),
    pytest.param({"tp": 2}, 3, [], marks=FULL),
    pytest.param({"cp": 2}, 2, [], marks=FULL),
    ({"pp": 2}, 0, []),
    pytest.param({"pp": 2}, 1, [], marks=FULL),
]


@pytest.mark.parametrize("grid, zero, more", LAYOUTS, ids=str)
def test_g4_non_finite_on_one_rank_is_seen_by_the_whole_grid(grid, zero, more):
    run_ranks(math.prod(grid.values()), check_non_finite, grid, zero, more, timeout=180)


def check_bf16(grid, zero, more):
    import layouts

    built = layouts.make(grid, zero, *more, dtype=torch.bfloat16)
    start = {n: t.clone() for n, t in layouts.gathered(built.engine).items()}
    losses, norms, weights = layouts.reference(built.config)
    for number in range(3):
        result = layouts.step(built, layouts.rows_of_step(number), layouts.RATES[number])
        assert result.loss == pytest.approx(losses[number], rel=5e-3)
        assert result.grad_norm == pytest.approx(norms[number], rel=2e-2)
    found = layouts.gathered(built.engine)
    ours = torch.cat([(found[n] - start[n]).flatten() for n in sorted(found)])
    theirs = torch.cat([(weights[n] - start[n]).flatten() for n in sorted(found)])
    assert float(ours.norm() / theirs.norm()) == pytest.approx(1.0, abs=3e-2)
    assert float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0)) > 0.99
    assert layouts.reward_deviation(built, "ghost") < 0.1


@pytest.mark.parametrize(
    "grid, zero, more", [*LAYOUTS, ({"tp": 2}, 0, ["parallel.sequence_parallel=true"]), ({"cp": 2}, 3, [])], ids=str
)
def test_z2_bf16_follows_the_fp32_reference(grid, zero, more):
    run_ranks(math.prod(grid.values()), check_bf16, grid, zero, more, timeout=180)


OFFLOAD = "parallel.offload_optimizer.device=cpu"


def check_offload(grid, zero, more):
    import layouts

    built = layouts.make(grid, zero, *more)
    losses, norms, weights = layouts.reference(built.config)
    for number in range(3):
        result = layouts.step(built, layouts.rows_of_step(number), layouts.RATES[number])
        assert result.loss == pytest.approx(losses[number], rel=1e-6)
        assert result.grad_norm == pytest.approx(norms[number], rel=1e-5)
    for name, tensor in layouts.gathered(built.engine).items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-5)
    assert built.engine.engine._config.zero_config.offload_optimizer.device == "cpu"


@pytest.mark.parametrize(
    "grid, zero, more",
    [({"dp": 2}, 1, []), ({"tp": 2}, 2, []), ({"dp": 2}, 3, ["parallel.offload_param.device=cpu"]), ({"pp": 2}, 1, [])],
    ids=str,
)
def test_z2_offloaded_states_train_the_same(grid, zero, more):
    run_ranks(math.prod(grid.values()), check_offload, grid, zero, [OFFLOAD, *more], timeout=180)


def check_partitions(grid, zero):
    """Z1: what ZeRO cuts is this rank's shard, over the data- and context-parallel ranks and no others."""
    import layouts
    import torch.distributed as dist

    built = layouts.make(grid, zero)
    optimizer, topology = built.engine.engine.optimizer, built.topology
    assert dist.get_process_group_ranks(optimizer.dp_process_group) == dist.get_process_group_ranks(topology.group("dp_cp"))
    held = sum(p.numel() if zero < 3 else p.ds_numel for _, p in built.engine.parameters)
    cut = sum(flat.numel() for flat in built.engine.state._flats()) * topology.size("dp") * topology.size("cp")
    assert held <= cut <= held * 1.1 + 1000  # padding
    layouts.step(built, layouts.rows_of_step(0), 1e-3)
    for name, parameter in built.engine.parameters:
        whole = built.engine.state.full(parameter, "weight").detach().contiguous()
        pieces = [torch.empty_like(whole) for _ in range(topology.size("tp"))]
        dist.all_gather(pieces, whole, group=topology.group("tp"))
        same = [torch.equal(piece, pieces[0]) for piece in pieces[1:]]
        assert all(same) if not parameter.tensor_model_parallel else not any(same), name


@pytest.mark.parametrize("grid, zero", [({"dp": 2, "tp": 2}, 1), ({"cp": 2, "tp": 2}, 3), ({"pp": 2, "dp": 2}, 1)], ids=str)
def test_z1_z3_zero_cuts_each_shard_over_data_and_context_ranks_alone(grid, zero):
    run_ranks(4, check_partitions, grid, zero, timeout=180)


@pytest.mark.parametrize(
    "grid, zero, option",
    [
        ({"cp": 2}, 3, "reduce_scatter=false"),
        ({"cp": 2}, 2, "reduce_scatter=false"),
        ({"cp": 2}, 1, "contiguous_gradients=false"),
    ],
    ids=str,
)
def test_z1_settings_of_zero_change_no_gradient_of_shared_sequences(grid, zero, option):
    import layouts

    run_ranks(2, layouts.check_layout, grid, zero, [f"parallel.zero_options.{option}"], timeout=180)
