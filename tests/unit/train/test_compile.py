"""train.compile: what it leaves as it is, and (full) that it trains, rewards and resumes as without."""

import pytest
import torch
from harness import run_ranks
from model_cases import fields, small_batch, small_config

from mads.model import compiled
from mads.model.decoder import Decoder
from mads.train.ghost import ghost_products

FULL = pytest.mark.full


def test_names_stay_and_as_written_a_compiled_model_is_the_plain_one():
    """Nothing compiles here: it would at the first call of a layer outside of `as_written`."""
    plain, model, batch = Decoder(small_config()), Decoder(small_config()), small_batch()
    compiled.compile_layers(model)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    v = [{p: torch.ones_like(p) for p in m.parameters()} for m in (model, plain)]
    with compiled.as_written():
        assert torch.equal(model(*fields(batch))[1], plain(*fields(batch))[1])
        assert torch.equal(ghost_products(model, batch, v[0].__getitem__), ghost_products(plain, batch, v[1].__getitem__))


def test_a_compiler_that_does_not_work_is_told(monkeypatch):
    def fails(*arguments, **rest):
        raise FileNotFoundError("no such program: g++")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(RuntimeError, match="does not work on this machine: no such program: g"):
        compiled.check_compiler(torch.device("cpu"))


def check_compiled(stages):
    """Three steps against the same without; rewards on the weights that they leave; ghost products need `as_written`."""
    import layouts
    import model_support as support

    from mads.train.passes import passes_of

    compiled.check_compiler(torch.device("cpu"))
    for stage in stages:
        results = {}
        for compile_ in ("false", "true"):
            built = layouts.make({}, stage, f"train.compile={compile_}", batch=4)
            engine = built.engine
            for step in range(3):
                last = layouts.step(built, layouts.rows_of_step(step, 4), 1e-3, step)
            results[compile_] = (last.loss, last.grad_norm, {n: engine.state.full(p, "weight") for n, p in engine.parameters})
        assert results["true"][0] == pytest.approx(results["false"][0], rel=1e-5), stage
        assert results["true"][1] == pytest.approx(results["false"][1], rel=1e-4), stage
        for name, weight in results["false"][2].items():
            torch.testing.assert_close(results["true"][2][name], weight, rtol=1e-4, atol=1e-5)
        ((batch, *_), _) = support.micro_batches(layouts.rows_of_step(3, 4), 0, 1)
        v = {p: torch.ones_like(p) for _, p in engine.parameters}
        (found,) = passes_of(engine).ghost_products([batch], v.__getitem__)
        twin = Decoder(built.config.model)
        with torch.no_grad():
            for ours, theirs in zip(twin.parameters(), engine.module.parameters()):
                ours.copy_(theirs)
        exact = ghost_products(twin, batch, lambda p: torch.ones_like(p))
        assert torch.equal(found, exact), stage
        short = ghost_products(engine.module, batch, v.__getitem__)  # compiled layers have not called the taps
        assert not torch.allclose(short, exact, rtol=1e-2), stage


@FULL
def test_compiled_layers_train_as_the_plain_ones_and_rewards_do_not_use_them():
    run_ranks(1, check_compiled, [0, 1, 2], timeout=600)
