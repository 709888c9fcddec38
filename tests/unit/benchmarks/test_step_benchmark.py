"""The benchmark of a step: every contestant that can be here has the model's parameters and its loss, phases add up to a step,
and ratios are of the same round."""

import sys

import numpy as np
import pytest
import torch

from benchmarks.peers import cell as cells
from benchmarks.peers.cell import Cell, Job, Shape, packed_rows, read_batches, whole_rows
from benchmarks.peers.clock import PHASES, Clock
from benchmarks.peers.data import document_lengths, write_cell
from benchmarks.peers.profiles import group_of
from benchmarks.step import CLOSE, Contestant, check
from benchmarks.step_tables import journal, memory_groups, operators, quartiles, ratios, seconds_of, table, turns
from mads.data.batch import make_batch
from mads.model.shape import parameter_count

SMALL = Shape(32, 2, 4, 2, 96, 128)
UNTIED = Shape(32, 2, 4, 2, 96, 128, tie_embeddings=False)


@pytest.fixture(scope="module", params=["tied", "untied"])
def job(request, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setitem(cells.SIZES, "small", SMALL if request.param == "tied" else UNTIED)
    patch.setenv("RANK", "0")
    folder = tmp_path_factory.mktemp("cell") / "work"
    data = write_cell(Cell("small", 32, "packed", 2, 3, 2), folder)
    yield Job("", Cell("small", 32, "packed", 1, 3, 2), str(folder)), data
    patch.undo()


def test_the_sizes_are_what_they_are_called():
    counts = [parameter_count(shape) / 1e6 for shape in cells.SIZES.values()]
    np.testing.assert_allclose(counts, [1.3, 10.0, 100.1], rtol=0.01)


@pytest.mark.parametrize("documents, count, mean", [("packed", 100, 30), ("whole", 36, 128)])
def test_documents_fill_the_steps(documents, count, mean):
    lengths = document_lengths(Cell("1M", 128, documents, 2, 3, 1), np.random.default_rng(0))
    assert len(lengths) >= count and lengths.max() <= 128 and lengths.mean() == pytest.approx(mean, rel=0.15)


def test_own_rows_are_laid_out_as_mads_lays_them_out():
    for rows, borders in ((whole_rows(SMALL, 32), [0, 32]), (packed_rows(SMALL, 32), [0, 8, 17, 32])):
        documents = [[row[a:b].numpy() for a, b in zip(borders, borders[1:])] for row in rows.tokens]
        expected = make_batch(documents, 32)
        for name in cells.FIELDS:
            assert torch.equal(getattr(rows, name), getattr(expected, name)), name


def test_all_contestants_have_the_models_parameters_and_loss(job):
    from benchmarks.peers.hugging_face import HuggingFace, HuggingFaceTrainer
    from benchmarks.peers.ours import Bare
    from benchmarks.peers.plain import NanoGPT

    job, data = job
    bare = Bare(job)
    shape, whole, packed = job.cell.shape, whole_rows(job.cell.shape, 32), packed_rows(job.cell.shape, 32)
    assert data["parameters"] == parameter_count(shape)
    with torch.no_grad():
        for p in bare.module.parameters():  # far from the start, where every loss is about the same
            p.mul_(3)
    for kind in (HuggingFace, HuggingFaceTrainer, NanoGPT):
        other = kind(job)
        with torch.no_grad():
            for p in other.module.parameters():
                p.mul_(3)
        assert other.parameters() == data["parameters"]
        assert other.check(whole) == pytest.approx(bare.check(whole), rel=CLOSE)
        same = abs(other.check(packed) - bare.check(packed)) < CLOSE * bare.check(packed)
        assert same == other.masks, kind


def test_the_ranks_of_a_cell_read_the_loaders_batches(job):
    job, data = job
    both = [read_batches(job.folder, rank) for rank in (0, 1)]
    assert [len(steps) for steps in both] == [data["steps"]] * 2 and data["steps"] >= 6
    batches = [batch for steps in both for step in steps for batch in step]
    assert all(batch.tokens.shape == (3, 32) for batch in batches) and len(batches) == 4 * data["steps"]
    assert len({batch.tokens.numpy().tobytes() for batch in batches}) == len(batches)
    assert sum(int((b.labels >= 0).sum()) for b in batches) == round(data["targets"] * data["steps"])


def test_loops_of_equal_models_stay_equal_over_steps(job, monkeypatch):
    from benchmarks.peers.hugging_face import HuggingFace
    from benchmarks.peers.ours import Bare

    losses = []
    for kind in (Bare, HuggingFace):
        contestant = kind(job[0])
        contestant.prepare()
        torch.autograd.backward = contestant.clock._backward
        losses.append([contestant.step() for _ in range(4)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][0] != losses[0][3]


def test_phases_add_up_to_the_step():
    module = torch.nn.Linear(4, 4)
    optimizer, backward = torch.optim.SGD(module.parameters()), torch.autograd.backward
    try:
        clock = Clock(module)
        for _ in range(2):
            with clock.span("loader"):
                x = torch.ones(3, 4)
            module(x).sum().backward()
        optimizer.step()
        clock.end(1.0)
    finally:
        torch.autograd.backward = backward
    (step,) = clock.take()
    assert sum(step[p] for p in PHASES) == pytest.approx(step["wall"]) and all(step[p] > 0 for p in PHASES)
    assert clock.take() == []


def test_everybody_begins_a_round_once():
    names = ["a", "b", "c"]
    orders = [turns(names, r) for r in range(3)]
    assert all(sorted(order) == names for order in orders) and sorted(order[0] for order in orders) == names


def test_ratios_are_of_the_same_round_and_slow_ranks_count():
    rounds = [{"mads": 1.0, "x": 2.0}, {"mads": 10.0, "x": 11.0}, {"mads": 5.0}]
    assert ratios(rounds, "x", "mads") == [2.0, 1.1]
    assert quartiles([1, 2, 3, 4, 5]) == (2, 3, 4) and quartiles([7.0]) == (7.0, 7.0, 7.0)
    steps = [[{"wall": 1, "cpu": 1}, {"wall": 5, "cpu": 1}], [{"wall": 2, "cpu": 3}, {"wall": 3, "cpu": 1}]]
    assert seconds_of(steps, "wall") == (2 + 5) / 2 and seconds_of(steps, "cpu") == (4 + 2) / 2


def test_groups_fit_into_memory_with_the_reference_in_each():
    assert memory_groups(["m", "a", "b", "c"], "m", 2, 6) == [["m", "a", "b"], ["m", "c"]]
    assert memory_groups(["m", "a", "b"], "m", 10, 6) == [["m", "a"], ["m", "b"]] and memory_groups(["m"], "m", 1, 9) == [["m"]]


def test_a_contestant_that_differs_is_told():
    good = {"parameters": 5, "whole_loss": 2.0, "packed_loss": 3.0, "masks": True}
    check({"mads": good, "x": good | {"packed_loss": 4.0, "masks": False}, "y": {"skipped": "no module"}}, 5)
    for bad in ({"parameters": 6}, {"whole_loss": 2.001}, {"packed_loss": 3.001}):
        with pytest.raises(ValueError, match="x "):
            check({"mads": good, "x": good | bad}, 5)


def test_the_table_names_what_was_skipped_and_computes_rates():
    entry = {"phases": dict.fromkeys(PHASES, 1.0), "masks": True, "peak_mib": 100.0}
    result = {
        "cell": vars(Cell("1M", 100, "packed", 1, 2, 1)),
        "reference": "mads",
        "date": "2026-01-01",
        "steps": 1,
        "cores": 2,
        "data": {"tokens": 180.0, "documents": 8, "parameters": 10**6},
        "flops_per_token": 10**8,
        "peak_gflops": 100.0,
        "contestants": {"mads": entry, "n": entry | {"masks": False}, "z": {"skipped": "no z"}},
        "rounds": [{"wall": {"mads": 0.5, "n": 0.25}, "cpu": {"mads": 0.4, "n": 0.4}}] * 3,
    }
    head, _, *lines = table(result).splitlines()
    mads, other, skipped = lines[-3:]
    assert "0.500 | 1.000 (1.000 - 1.000)" in mads and "| 360 | 50 | 50% | 100 |" in mads
    assert "attends across documents" in other and "0.500 (0.500 - 0.500) | 1.000" in other and "skipped: no z" in skipped
    assert mads.count("|") == other.count("|") == skipped.count("|")


def test_kinds_of_work_are_shares_of_the_products():
    groups = {
        "a": {"matrix products": 50.0, "attention": 10.0, "copies": 1.0},
        "b": {"matrix products": 200.0, "attention": 20.0},
    }
    result = {"contestants": {n: {"profile": {"groups": g}} for n, g in groups.items()} | {"c": {"skipped": "no c"}}}
    assert operators(result).splitlines()[2:] == [
        "| attention | 20.0 | 10.0 |",
        "| copies | 2.0 | 0.0 |",
        "| **all but products** | 22.0 | 10.0 |",
    ]


def test_a_runs_phases_are_shares_of_its_loop():
    lines = [{"kind": "train", "seconds": 6.0}, {"kind": "eval", "seconds": 9.0}]
    lines += [{"kind": "phase", "name": name, "seconds": s} for name, s in (("train", 3.0), ("probes", 2.5), ("train", 4.5))]
    assert journal(lines).splitlines()[2:] == [
        "| train | 7.5 | 75.00% |",
        "| probes | 2.5 | 25.00% |",
        "| in all | 10.0 | |",
    ]


def test_operators_are_sorted_into_kinds():
    kinds = [group_of(n) for n in ("aten::mm", "gloo:all_reduce", "aten::_log_softmax", "aten::mul", "aten::copy_")]
    assert kinds == ["matrix products", "communication", "cross entropy", "everything else", "copies"]


def test_a_process_takes_its_turns_and_another_tells_why_it_cannot(tmp_path):
    cell = Cell("1M", 16, "whole", 1, 1, 1)
    write_cell(cell, tmp_path / "work")
    kinds = {kind: Job(kind, cell, str(tmp_path / "work")) for kind in ("nanogpt", "lingua")}
    running = {kind: Contestant(kind, job, sys.executable, tmp_path) for kind, job in kinds.items()}
    try:
        (ready,) = running["nanogpt"].answers()
        assert ready["parameters"] == parameter_count(cell.shape) and ready["version"] == f"torch {torch.__version__}"
        (answer,) = running["nanogpt"].ask(do="steps", count=2)
        assert len(answer["steps"]) == 2 and answer["peak_mib"] > 0 and answer["steps"][0]["loss"] > 5
        (answer,) = running["nanogpt"].ask(do="profile", count=1)
        assert answer["groups"]["matrix products"] > 0 and len(answer["operators"]) == 30
        with pytest.raises(RuntimeError, match="No module named 'apps'"):
            running["lingua"].answers()
    finally:
        for contestant in running.values():
            contestant.end()
