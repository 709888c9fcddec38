"""Real optimizer steps inside a rehearsal: they are those of training, can be repeated, and leave no trace."""

import math

import pytest
import torch
from harness import run_ranks

RATES = [3e-3, 1e-3, 2e-3, 3e-3]
OFFLOAD = "parallel.offload_optimizer.device=cpu"
FULL = pytest.mark.full


def _built(grid, zero, more, dtype_name="float32"):
    import layouts

    from mads.train.reward_model import EngineRewardModel

    built = layouts.make(grid, zero, *more, dtype=getattr(torch, dtype_name))
    built.model = EngineRewardModel(built.engine)
    built.samples = [row[0] for row in layouts.rows_of_step(42, 4)]
    return built


def _micro_batches(built, seed, rows=8, micro=None):
    """This rank's share of `rows` rows and the targets of all."""
    import layouts
    import model_support as support

    t = built.topology
    micro = micro or built.config.train.micro_batch_size
    return support.micro_batches(layouts.rows_of_step(seed, rows), t.coordinate("dp"), t.size("dp"), micro)


def _rehearsed_steps(built):
    """(batches, valid tokens, rate) of four steps: fewer and more micro-batches than in training, of other numbers of rows, one
    where all replicas but the first have no target."""
    from mads.data.batch import make_batch

    first = built.topology.coordinate("dp") == 0
    batches, valid = _micro_batches(built, 40, 2 * built.topology.size("dp"), micro=1)
    yield [make_batch([[], []], 32), *batches], valid, RATES[0]
    yield *_micro_batches(built, 41, built.topology.size("dp"), micro=1), RATES[1]
    one = make_batch([built.samples[:1]], 32)
    yield [one if first else make_batch([[]], 32)], one.valid_tokens, RATES[2]
    yield *_micro_batches(built, 43), RATES[3]


def _losses(built):
    batches, _ = _micro_batches(built, 50)
    return torch.cat(built.model.sample_losses(batches))


def _rehearse(built):
    """Four steps, twice from the same state: with the same losses each time, other than those before."""
    start, told = _losses(built), []
    with built.model.rehearsal() as rehearsal:
        for _ in range(2):
            for step in _rehearsed_steps(built):
                rehearsal.step(*step)
            told.append(_losses(built))
            rehearsal.rewind()
            assert torch.equal(_losses(built), start)
    assert torch.equal(_losses(built), start)
    assert torch.equal(*told)
    assert float((told[0] - start).abs().min()) > 1e-4


def _everything(built):
    import layouts

    state = layouts.everything(built)
    for name, p in built.engine.parameters:
        state[f"parameter/{name}"] = (p.ds_tensor if built.engine.zero_stage == 3 else p.data).clone()
    state["rates"] = torch.tensor([group["lr"] for group in built.engine.engine.optimizer.param_groups], dtype=torch.float64)
    return state


def _assert_equal(one, other):
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different, different


def check_no_trace(grid, zero, more, dtype_name="float32"):
    """Rehearsals before the first step and between the first and the second: three steps equal those of a run without."""
    import layouts

    runs = []
    for rehearse in (False, True):
        built = _built(grid, zero, more, dtype_name)
        losses, rng = [], torch.get_rng_state()
        for number in range(3):
            if rehearse and number < 2:
                before = _everything(built)
                _rehearse(built)
                _assert_equal(before, _everything(built))
            batches, valid = _micro_batches(built, number)
            result = built.engine.train_step(batches, valid, layouts.RATES[number], number)
            losses += [result.loss, result.grad_norm]
        assert torch.equal(rng, torch.get_rng_state())
        runs.append((losses, _everything(built)))
    assert runs[0][0] == runs[1][0]
    _assert_equal(runs[0][1], runs[1][1])


def check_one_rehearsal(grid, zero):
    """After a step: a rehearsal leaves all state of this rank as it was."""
    built = _built(grid, zero, [])
    built.engine.train_step(*_micro_batches(built, 0), 1e-3)
    before = _everything(built)
    _rehearse(built)
    _assert_equal(before, _everything(built))


BF16 = "bfloat16"
LAYOUTS = [
    *[({"dp": 1}, zero, [], "float32") for zero in (0, 3)],
    *[({"dp": 2}, zero, [], "float32") for zero in range(4)],
    ({"dp": 2}, 1, [], BF16),
    ({"tp": 2}, 1, ["parallel.sequence_parallel=true"], "float32"),
    ({"pp": 2}, 0, ["model.tie_embeddings=true", "model.hidden_dropout=0.1"], "float32"),
    ({"pp": 2}, 1, [], "float32"),
    ({"dp": 2}, 2, [OFFLOAD], "float32"),
    ({"dp": 2}, 3, [OFFLOAD, "parallel.offload_param.device=cpu"], "float32"),
]
LEFT_TO_FULL = [
    *[({"dp": 1}, zero, [], "float32") for zero in (1, 2)],
    *[({"dp": 2}, zero, [], BF16) for zero in (0, 2, 3)],
    ({"tp": 2}, 0, [], BF16),
    ({"pp": 2}, 0, [], BF16),
    ({"pp": 2}, 1, [], BF16),
    ({"pp": 2}, 1, [OFFLOAD], "float32"),
    ({"cp": 2}, 2, [], "float32"),
    ({"cp": 2}, 3, [], BF16),
    ({"dp": 2, "pp": 2}, 1, [], "float32"),
    ({"dp": 2, "tp": 2}, 3, ["model.hidden_dropout=0.1"], "float32"),
]


@pytest.mark.parametrize("grid, zero, more, dtype", LAYOUTS + [pytest.param(*case, marks=FULL) for case in LEFT_TO_FULL], ids=str)
def test_a_rehearsal_leaves_no_trace(grid, zero, more, dtype):
    run_ranks(math.prod(grid.values()), check_no_trace, grid, zero, more, dtype, timeout=180)


def check_steps_are_those_of_training(grid, zero, more=(), dtype_name="float32"):
    """After the same batches: weights, moments and losses inside equal those of a twin that trained, bit for bit."""
    import layouts

    built, twin = (_built(grid, zero, more, dtype_name) for _ in range(2))
    for engine in (built.engine, twin.engine):
        engine.train_step(*_micro_batches(built, 0), 1e-3)
    with built.model.rehearsal() as rehearsal:
        for number in (1, 2):
            step = *_micro_batches(built, number), RATES[number]
            rehearsal.step(*step)
            twin.engine.train_step(*step)
        assert torch.equal(_losses(built), _losses(twin))
        for key in layouts.STATE:
            _assert_equal(layouts.gathered(built.engine, key), layouts.gathered(twin.engine, key))
        assert built.engine.state.steps == twin.engine.state.steps == 3
    assert built.engine.state.steps == 1


ELSEWHERE = [pytest.param(*case, marks=FULL) for case in (({"dp": 2}, 0), ({"dp": 2}, 2), ({"tp": 2}, 0))]


@pytest.mark.parametrize("grid, zero", [({"dp": 2}, 1), ({"dp": 2}, 3), ({"pp": 2}, 1), *ELSEWHERE], ids=str)
def test_rehearsed_steps_are_those_of_training(grid, zero):
    run_ranks(2, check_steps_are_those_of_training, grid, zero, timeout=120)


def check_any_cut(grid, zero):
    """The same rows in other numbers of micro-batches, of other numbers of rows, are the same step."""
    from mads.data.batch import make_batch

    built = _built(grid, zero, [])
    rows = [[sample] for sample in built.samples]
    valid = sum(len(sample) - 1 for sample in built.samples)
    start, found = _losses(built), []
    with built.model.rehearsal() as rehearsal:
        for cuts in ([0, 2, 4], [0, 1, 2, 3, 4], [0, 4], [0, 3, 4]):
            batches = [make_batch(rows[a:b], 32) for a, b in zip(cuts, cuts[1:])]
            if built.topology.coordinate("dp") > 0:
                batches = [make_batch([[]], 32)] * len(batches)
            rehearsal.step(batches, valid, 1e-2)
            found.append(_losses(built))
            rehearsal.rewind()
    assert float((found[0] - start).abs().min()) > 1e-3
    for losses in found[1:]:
        torch.testing.assert_close(losses, found[0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("grid, zero", [({"dp": 2}, 1), ({"pp": 2}, 1), pytest.param({"dp": 2}, 3, marks=FULL)], ids=str)
def test_a_rehearsed_step_takes_any_number_of_micro_batches(grid, zero):
    run_ranks(2, check_any_cut, grid, zero)


def check_refusals(zero):
    """An exception inside restores; what is asked wrongly is told on every rank; nesting and use after the end are errors."""
    from mads.train.interface import NonFiniteError

    built = _built({"dp": 2}, zero, [])
    rank, model = built.topology.rank, built.model
    batches, valid = _micro_batches(built, 1)
    built.engine.train_step(*_micro_batches(built, 0), 1e-3)
    before = _everything(built)
    with pytest.raises(KeyError), model.rehearsal() as rehearsal:
        rehearsal.step(batches, valid, 1e-3)
        raise KeyError
    _assert_equal(before, _everything(built))
    with model.rehearsal() as rehearsal:
        rehearsal.step(batches, valid, 1e-3)
        with pytest.raises(RuntimeError, match="inside a rehearsal"), model.rehearsal():
            pass
        for wrong in ((batches[:rank], valid, 1e-3), (batches, valid + rank, 1e-3), (batches, valid, rank), (batches, 0, 1e-3)):
            with pytest.raises(ValueError, match="on every rank"):
                rehearsal.step(*wrong)
        rehearsal.step(batches, valid, 1e30)
        with pytest.raises(NonFiniteError):
            rehearsal.step(batches, valid, 1e-3)
        rehearsal.rewind()
        _assert_equal(before, _everything(built))
    _assert_equal(before, _everything(built))
    with pytest.raises(RuntimeError, match="is over"):
        rehearsal.rewind()
    built.engine.on_disk = True
    with pytest.raises(ValueError, match="nvme"), model.rehearsal():
        pass


@pytest.mark.parametrize("zero", [1, 3])
def test_a_rehearsal_ends_in_any_case_and_refuses_what_is_wrong(zero):
    run_ranks(2, check_refusals, zero)


def check_a_trace_is_an_error(grid, zero):
    """Every part of the optimizer's state that is not what it was stops the run."""
    built = _built(grid, zero, [])
    built.engine.train_step(*_micro_batches(built, 0), 1e-3)
    with built.model.undisturbed():
        pass
    for flat, state in built.engine.state._base.state.items():
        for tensor in (flat, *state.values()):
            with pytest.raises(RuntimeError, match="changed the model"), torch.no_grad(), built.model.undisturbed():
                tensor.view(-1)[-1:].mul_(1.5).add_(1.0)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_a_trace_in_the_optimizers_state_is_an_error(zero):
    run_ranks(1, check_a_trace_is_an_error, {"dp": 1}, zero)
