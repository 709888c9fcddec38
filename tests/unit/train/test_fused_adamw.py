"""The fused AdamW is what steps, at every ZeRO stage and offloaded, over all parameters."""

import pytest
import torch
from harness import run_ranks
from torch.utils._python_dispatch import TorchDispatchMode

FUSED = "aten::_fused_adamw_"


class Stepped(TorchDispatchMode):
    """Elements that the fused operation steps, and the names of all in-place operations on lists of tensors."""

    def __init__(self):
        super().__init__()
        self.elements, self.lists = 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.name().split(".")[0]
        if name == FUSED:
            self.elements += sum(p.numel() for p in arguments[0])
            assert {p.dtype for p in arguments[0]} == {torch.float32}
        if name.startswith("aten::_foreach") and name.endswith("_"):
            self.lists.add(name)
        return function(*arguments, **(keywords or {}))


def check_fused(cases):
    import model_support as support

    for stage, dtype, more in cases:
        built = support.make_engine(stage, getattr(torch, dtype), overrides=list(more))
        engine = built.engine
        assert all(group["fused"] for group in engine.engine.optimizer.param_groups)
        micro, valid = support.micro_batches(support.global_batch(2, seed=1), 0, 1)
        engine.train_step(micro, valid, 1e-3)
        with Stepped() as stepped:
            engine.train_step(micro, valid, 1e-3)
        assert stepped.elements >= sum(shape.numel() for shape in engine.logical_shapes.values()), (stage, more)
        assert stepped.lists <= {"aten::_foreach_mul_", "aten::_foreach_add_"}, (stage, stepped.lists)  # clipping; step counts


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.full)])
def test_the_fused_optimizer_steps_all_parameters_at_every_stage_and_offloaded(dtype):
    cases = [(stage, dtype, ()) for stage in range(4)]
    if dtype == "float32":
        cases += [(stage, dtype, ("parallel.offload_optimizer.device=cpu",)) for stage in (1, 2, 3)]
    run_ranks(1, check_fused, cases, timeout=120)
