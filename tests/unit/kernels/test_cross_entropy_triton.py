"""The Triton cross entropy without a GPU: in Triton's interpreter, compiled for two GPUs, and what it refuses."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mads.kernels.cross_entropy_triton import available, logits_gradient_, row_statistics

TESTS = Path(__file__).resolve().parents[2]

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mads.kernels.cross_entropy_programs import gradient, statistics

# Pointers by dtype, as the launcher would find them for bf16 logits.
SIGNATURES = {
    statistics: dict(logits="*bf16", stride="i32", labels="*i64", lse_out="*fp32", target_out="*fp32", total_out="*fp32",
                     valid="i32"),
    gradient: dict(logits="*bf16", stride="i32", lse="*fp32", labels="*i64", scale="*fp32", width="i32", valid="i32",
                   spread="fp32", on_target="fp32", twice_z="fp32"),
}
for capability in (80, 90):
    for function, signature in SIGNATURES.items():
        source = ASTSource(function, signature | {"BLOCK": "constexpr"}, {"BLOCK": 4096})
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
        assert len(compiled.asm["cubin"]) > 0 and f"sm_{capability}" in compiled.asm["ptx"]
        print(compiled.metadata.name, capability)
"""


def _run(arguments, **variables):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, cwd=TESTS, env=os.environ | variables
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_cases_in_tritons_interpreter():
    pytest.importorskip("triton")
    # Triton asks for the interpreter when it is imported, so these cases have a process of their own.
    out = _run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "triton_cases.py"], TRITON_INTERPRET="1")
    assert "29 passed" in out, out


BROKEN = """
import importlib.util, sys
import pytest
name = "mads.kernels.cross_entropy_programs"
spec = importlib.util.spec_from_file_location(name, sys.argv[1])
module = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "triton_cases.py"]))
"""
MUTANTS = {
    "padding columns count": ("inside = column < valid", "inside = column < valid + 1"),
    "the running sum is not rescaled": ("s * tl.exp(m - shift)", "s"),
    "smoothing is spread twice": ("* total) - spread", "* total) - 2 * spread"),
    "z-loss has no gradient": ("(1.0 + twice_z * total)", "1.0"),
    "padding keeps its logits": ("mask=column < width", "mask=column < valid"),
    "the target of another rank counts": ("(label >= 0) & (label < valid)", "(label >= 0) & (label < valid + 1)"),
}


@pytest.mark.full
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_kernel_fails_the_cases(mutant, tmp_path):
    pytest.importorskip("triton")
    old, new = MUTANTS[mutant]
    source = Path(importlib.util.find_spec("mads.kernels.cross_entropy_programs").origin).read_text()
    assert source.count(old) == 1
    broken = tmp_path / "programs.py"
    broken.write_text(source.replace(old, new))
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, broken],
        capture_output=True,
        text=True,
        cwd=TESTS,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 1 and "AssertionError" in done.stdout, done.stdout + done.stderr


def test_kernels_compile_for_the_gpus(tmp_path):
    pytest.importorskip("triton")
    out = _run(["-c", COMPILE], TRITON_CACHE_DIR=str(tmp_path))
    assert out.split() == ["statistics", "80", "gradient", "80", "statistics", "90", "gradient", "90"]


def test_the_cpu_takes_the_reference():
    assert not available("cpu") and not available(torch.device("cpu"))


def test_what_the_kernels_do_not_take_is_refused():
    pytest.importorskip("triton")
    logits, labels, row = torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64), torch.zeros(4)
    with pytest.raises(ValueError, match="9 of the columns valid"):
        row_statistics(logits, labels, 9)
    with pytest.raises(ValueError, match="adjacent columns"):
        row_statistics(logits.t(), labels, 4)
    with pytest.raises(ValueError, match="torch.float64: the kernel takes"):
        row_statistics(logits.double(), labels, 8)
    with pytest.raises(ValueError, match=r"\(3,\) in torch.int64"):
        row_statistics(logits, labels[:3], 8)
    with pytest.raises(ValueError, match="one torch.float32 for each of the 4 rows"):
        logits_gradient_(logits, row, labels, row.double(), 8, 8)
