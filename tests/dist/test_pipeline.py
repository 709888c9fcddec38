"""Pipeline stages: start values (P6), balance (P4), any cut into micro-batches (Z4), and the same numbers twice (N1)."""

import math

import pytest
import torch
from harness import run_ranks

FULL = pytest.mark.full


def starts(grid, more):
    import layouts

    built = layouts.make(grid, 1, *more)
    return layouts.gathered(built.engine), [name for name, _ in built.engine.parameters]


@pytest.mark.parametrize("tied", ["false", "true"])
def test_p6_r2_start_values_do_not_depend_on_the_stages_and_layers_differ(tied):
    more = [f"model.tie_embeddings={tied}", "model.num_layers=4"]
    [(alone, names)] = run_ranks(1, starts, {}, more)
    assert ("head.weight" in names) == (tied == "false")
    for grid in ({"pp": 2}, {"pp": 4}, {"pp": 2, "tp": 2}):
        found = run_ranks(math.prod(grid.values()), starts, grid, more, timeout=120)
        for whole, _ in found:
            assert sorted(whole) == sorted(alone) and all(torch.equal(whole[n], alone[n]) for n in alone)
        stages = {tuple(own) for _, own in found}
        assert len(stages) == grid["pp"]  # every stage holds parameters of its own
        assert set().union(*stages) == set(alone)
    layers = [alone[f"layers.{i}.mlp.down.weight"] for i in range(4)]
    assert not any(torch.equal(a, b) for i, a in enumerate(layers) for b in layers[:i])


def borders(more):
    import layouts

    built = layouts.make({"pp": 2}, 1, *more)
    deviation = layouts.check_layout({"pp": 2}, 1, more)
    return built.engine.module.parts, deviation


def test_p4_stages_share_what_the_configuration_says_and_uneven_ones_train_right():
    # Pieces: embedding, four layers of 8704 weights, head. A head of 32768 weights is a stage of its own by its work; by what is
    # held the embedding weighs as much.
    wide = ["model.vocab_size=1024", "model.tie_embeddings=false", "model.num_layers=4"]
    for balance, expected in (("flops", [0, 5, 6]), ("layers", [0, 3, 6]), ("parameters", [0, 3, 6])):
        for parts, _ in run_ranks(2, borders, [*wide, f"parallel.pipeline_partition={balance}"], timeout=120):
            assert parts == expected, balance


def cut(grid, zero, micro):
    import layouts
    import model_support as support

    built = layouts.make(grid, zero, f"train.micro_batch_size={micro}")
    topology, results = built.topology, []
    for number in range(2):
        rows = layouts.rows_of_step(number)
        batches, valid = support.micro_batches(rows, topology.coordinate("dp"), topology.size("dp"), micro)
        results.append(built.engine.train_step(batches, valid, 1e-3))
    return [(r.loss, r.grad_norm) for r in results]


@pytest.mark.parametrize(
    "grid, zero",
    [({"pp": 2}, 1), *(pytest.param(*case, marks=FULL) for case in (({"pp": 2, "dp": 2}, 0), ({"cp": 2, "dp": 2}, 2)))],
    ids=str,
)
def test_z4_any_cut_into_micro_batches_gives_the_same_step(grid, zero):
    world, expected = math.prod(grid.values()), None
    for micro in (1, 2, 4):
        found = run_ranks(world, cut, grid, zero, micro, timeout=120)
        assert all(rank == found[0] for rank in found)
        expected = expected or found[0]
        assert [x for r in found[0] for x in r] == pytest.approx([x for r in expected for x in r], rel=1e-6)


def twice(grid, zero, more):
    import layouts

    runs = []
    for _ in range(2):
        built = layouts.make(grid, zero, *more)
        results = [layouts.step(built, layouts.rows_of_step(n), layouts.RATES[n], n) for n in range(3)]
        runs.append((results, layouts.everything(built)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][k], runs[1][1][k]) for k in runs[0][1])


@pytest.mark.parametrize(
    "grid, zero, more",
    [
        ({"pp": 2, "tp": 2}, 1, ["parallel.sequence_parallel=true", "model.hidden_dropout=0.1", "model.attention_dropout=0.1"]),
        pytest.param(
            {"dp": 2, "cp": 2}, 3, ["model.attention_dropout=0.1", "parallel.activation_checkpointing=full"], marks=FULL
        ),
    ],
    ids=str,
)
def test_n1_the_same_configuration_twice_gives_the_same_bits(grid, zero, more):
    run_ranks(4, twice, grid, zero, more, timeout=180)
