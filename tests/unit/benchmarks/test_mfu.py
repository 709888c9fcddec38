"""The MFU table: its cells, its arithmetic, and that every fallback is refused by its name."""

import dataclasses
import json

import numpy as np
import pytest
from mfu_support import CELL, CONFIG, LINKED, NAME, QUERIED, machine, recorded

from benchmarks.mfu import __main__ as command
from benchmarks.mfu.checks import NAMES, WARNINGS, Finding, machine_findings, run_findings, throttle_words
from benchmarks.mfu.facts import Machine, ask_smi, gather, parse_apps
from benchmarks.mfu.plan import LAYOUTS, SHARE, Settings, cells
from benchmarks.mfu.pool import write_pool
from benchmarks.mfu.table import figures, markdown
from mads.config.compose import ConfigError, compose
from mads.data.pool import Pool
from mads.data.schema import Manifest
from mads.doctor.estimate import GIB, Cluster, estimates, fullest

# ---------------------------------------------------------------- the cells


def test_the_plan_is_what_the_page_promises():
    planned = cells(["paper_373m"], [1, 8], tuple(LAYOUTS), Settings(micro_batch=4))
    assert [c.name.removeprefix("paper_373m-") for c in planned] == [
        *(f"1gpu-zero{stage}" for stage in (1, 2, 3)),
        *(f"8gpu-zero{stage}" for stage in (1, 2, 3)),
        "8gpu-tp2",
        "8gpu-tp4",
    ]
    last = planned[-1]
    assert "parallel=zero1" in last.overrides and "parallel.sequence_parallel=true" in last.overrides
    assert last.global_batch == 2 * 4 * 4  # 8 GPUs / 4, four micro-batches


def test_a_micro_batch_fits_and_the_next_one_does_not():
    (cell,) = cells(["paper_1b3"], [8], ["zero1"], Settings(memory_gib=79.0))
    config = compose([*cell.overrides, "data.dir=pool", "run_dir=run"])
    peak = fullest(estimates(config, Cluster(1, 8, 80 * GIB))).peak
    config.train.micro_batch_size *= 2
    assert peak <= SHARE * 79 * GIB < fullest(estimates(config, Cluster(1, 8, 80 * GIB))).peak


@pytest.mark.parametrize("wrong", [{"steps": 10}, {"warmup": 7}, {"warmup": 0}])
def test_a_plan_that_measures_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="steps must be left to measure"):
        cells(["nano"], [1], ["zero1"], dataclasses.replace(Settings(micro_batch=1), **wrong))


def test_what_a_run_would_refuse_is_refused_with_the_plan():
    with pytest.raises(ConfigError, match="model.num_key_value_heads=2 cannot be shared"):
        cells(["nano"], [4], ["tp4"], Settings(micro_batch=1, more=("model.num_key_value_heads=2",)))


# ---------------------------------------------------------------- the arithmetic


def made_up_lines(rates=(40.0, 50.0, 50.0)):
    lines = [{"kind": "eval"}, {"kind": "train", "step": 1, "tokens": 1000, "seconds": 60.0, "tokens_per_second": 1.0}]
    at = 10_000
    lines.append({"kind": "train", "step": 10, "tokens": at, "seconds": 9.0, "tokens_per_second": 1000.0})
    for i, seconds in enumerate(rates, 1):
        at += 5000
        rate = 5000 / seconds
        lines.append({"kind": "train", "step": 10 + 5 * i, "tokens": at, "seconds": seconds, "tokens_per_second": rate})
    return [line | {"memory_mib": 2048.0, "loss": 3.0} for line in lines]


def check_arithmetic():
    # 15,000 tokens in 140 s of 2 GPUs at 1.846e12 FLOPs a token: 98.9e12 FLOP/s each, a tenth of an H100.
    result = figures(made_up_lines(), 10, 98.9e12 * 2 * 140 / 15_000, 2, NAME, 1250)
    assert result["mfu"] == pytest.approx(0.1) and result["tflops"] == pytest.approx(98.9)
    assert result["tokens_per_second"] == pytest.approx(15_000 / 140) and result["steps"] == 15
    assert result["quartiles"] == [pytest.approx(100.0), pytest.approx(112.5)]
    assert result["filled"] == pytest.approx(0.8) and result["memory_gib"] == 2.0


def test_figures_of_a_made_up_run():
    check_arithmetic()
    assert figures(made_up_lines(), 10, 1e9, 1, "NVIDIA L40", 1250)["mfu"] is None  # no peak, no MFU
    with pytest.raises(ValueError, match="1 train lines behind step 10"):
        figures(made_up_lines((40.0,)), 10, 1e9, 1, NAME, 1250)


def test_the_table_has_marks_and_what_failed():
    settings = {"accumulation": 2, "seq_length": 128}
    common = {"cell": dataclasses.asdict(CELL), "settings": settings}
    good = figures(made_up_lines(), 10, 98.9e12 * 2 * 140 / 15_000, 2, NAME, 1250)
    text = markdown(
        [common | {"figures": good, "findings": ["tf32: set"]}, common | {"failed": "ended with 1\nlog"}], {"torch": "2.9"}
    )
    first, second = text.splitlines()[2:4]
    assert "| nano | 8 | tp2 | 2 x 2 | 2,048 | 107 (100 to 112) |" in first and "| 10.0% | 2.0 | 80.0% | [1] |" in first
    assert "| failed |" in second and second.endswith("| [2] |")
    assert "[1] tf32: set" in text and "[2] ended with 1" in text and text.endswith("torch: 2.9\n")


# ---------------------------------------------------------------- refusals


def test_a_node_without_fault_has_no_finding():
    assert list(machine_findings(machine(), CELL)) == []
    assert list(run_findings(CELL, recorded(), CONFIG, "step 1\n", 0x4 | 0x1)) == []


BEFORE = {
    "gpus": {"devices": machine().devices[:4]},
    "peak": {"devices": [d | {"name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb"} for d in machine().devices]},
    "mixed-gpus": {"devices": [*machine().devices[:7], machine().devices[7] | {"name": "NVIDIA H200"}]},
    "bf16": {"bf16": "the GPU is older"},
    "flash-attn": {"flash": "ImportError: undefined symbol"},
    "fused-adamw": {"fused": "RuntimeError: no"},
    "nccl": {"nccl": "no NCCL"},
    "pinned-memory": {"pinned": "RuntimeError: cannot lock"},
    "triton": {"triton": "ModuleNotFoundError: triton"},
    "nvidia-smi": {"smi_error": "nvidia-smi: not found"},
    "other-processes": {"busy": parse_apps("GPU-0003, 4242, python\nGPU-0003, 4243, python")},
    "ecc": {"smi": [machine().smi[0] | {"ecc.errors.uncorrected.volatile.total": "3"}, *machine().smi[1:]]},
    "throttle": {"throttles": [0x1] * 7 + [0x41]},
    "modified-code": {"git": {"commit": "c" * 40, "modified": True}},
    # Ranks 3 and 4 never talk tensor parallel by twos; with every second GPU first, ranks 0 and 1 would be of both halves.
    "nvlink": {"devices": [machine().devices[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)]},
}


def check_before(name):
    found = list(machine_findings(machine(**BEFORE[name]), CELL))
    assert [f.name for f in found] == [name]
    assert found[0].stops == (name in NAMES) and len(found[0].text) > 15


@pytest.mark.parametrize("name", BEFORE)
def test_what_the_machine_lacks_has_its_name(name):
    check_before(name)


AFTER = {
    ("precision", "fp32"): "bf16",
    ("attention", "sdpa"): "flash-attn",
    ("head", "torch"): "triton",
    ("optimizer", "FusedAdam"): "fused-adamw",
    ("optimizer_fused", False): "fused-adamw",
    ("communication", "gloo"): "nccl",
    ("float32_matmul_precision", "high"): "tf32",
    ("device_name", "NVIDIA L40"): "peak",
    ("zero_stage", 2): "settings",
}


def check_after(key, value):
    found = list(run_findings(CELL, recorded(**{key: value}), CONFIG, "", 0))
    assert [f.name for f in found] == [AFTER[key, value]]
    assert found[0].stops and str(value) in found[0].text


@pytest.mark.parametrize("key, value", AFTER)
def test_what_a_run_recorded_is_held_to_what_was_asked(key, value):
    check_after(key, value)


def test_a_run_that_recorded_nothing_is_refused_for_everything():
    silent = recorded()
    silent.pop("resolved")
    assert {f.name for f in run_findings(CELL, silent, CONFIG, "", 0)} == {
        "bf16", "flash-attn", "triton", "fused-adamw", "nccl", "tf32", "peak", "settings",
    }  # fmt: skip


def test_processes_batches_logs_and_clocks_of_a_run_are_looked_at():
    other = {"parallel": CONFIG["parallel"], "train": CONFIG["train"] | {"micro_batch_size": 1}}
    assert [f.name for f in run_findings(CELL, recorded(), other, "", 0)] == ["settings"]
    assert [f.name for f in run_findings(CELL, recorded() | {"world_size": 1}, CONFIG, "", 0)] == ["gpus"]
    log = "a\nDeepSpeed: Falling back to the slow path\nb"
    (found,) = run_findings(CELL, recorded(), CONFIG, log, 0)
    assert found.name == "log" and "slow path" in found.text
    (found,) = run_findings(CELL, recorded(), CONFIG, "", 0x84)
    assert found.name == "throttle" and "power brake" in found.text and not found.stops


def test_refusals_name_the_thing_and_allowed_ones_become_marks(capsys):
    found = [Finding("tf32", "set; unset it"), Finding("ecc", "GPU 3 counts 1"), Finding("nccl", "gloo; use NCCL")]
    with pytest.raises(command.Refused, match=r"(?s)cell:\n  nccl: gloo; use NCCL\n.*--allow NAME"):
        command.refuse(found, ["tf32"], "cell")
    assert "warning: cell: ecc: GPU 3 counts 1" in capsys.readouterr().err
    assert command.refuse(found, ["tf32", "nccl"], "cell") == [str(f) for f in found]


def test_this_machine_without_a_gpu_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        command, "look_at_machine", lambda: machine(devices=[], smi_error="", **dict.fromkeys(("bf16", "nccl"), "no"))
    )
    folder = tmp_path / "out"
    assert command.main(["--folder", str(folder), "--models", "nano", "--micro-batch", "1", "--gpus", "1"]) == 2
    error = capsys.readouterr().err
    assert all(f"  {name}: " in error for name in ("gpus", "peak", "bf16", "nccl"))
    assert not list(folder.rglob("*.json"))


def test_the_names_are_explained_by_help(capsys):
    with pytest.raises(SystemExit):
        command.parse(["--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES | WARNINGS)


def test_facts_of_a_cpu_are_told_by_trying():
    found = gather()
    if not found.devices:
        assert found.bf16 and found.nccl and found.flash and found.pinned and found.triton and not found.fused
    assert json.loads(json.dumps(dataclasses.asdict(found)))["versions"]["torch"]


SMI = """#!/bin/sh
case "$*" in
  *query-gpu=index*) cat "$0.queried" ;;
  *query-compute-apps*) echo "GPU-0002, 77, python" ;;
  "topo -m") cat "$0.linked" ;;
  *clocks_event_reasons*) echo 'Field "clocks_event_reasons.active" is not a valid field to query.'; exit 2 ;;
  *clocks_throttle_reasons*) printf '0x0000000000000001\\n0x0000000000000044\\n' ;;
  *) exit 9 ;;
esac
"""


def test_nvidia_smi_is_asked_and_understood(tmp_path, monkeypatch):
    """A program of that name that answers as a driver older than 535 does."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    (tmp_path / "nvidia-smi.queried").write_text(QUERIED)
    (tmp_path / "nvidia-smi.linked").write_text(LINKED)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = Machine()
    ask_smi(found)
    assert found.smi_error == "" and found.throttles == [1, 0x44] and found.busy == {"GPU-0002": ["77 python"]}
    assert found.smi[7] == machine().smi[7] and found.smi[0]["power.limit"] == "700.00"
    assert [row[0] for row in found.links] == ["X", "NV18", "NV18", "NV18", "SYS", "SYS", "SYS", "SYS"]
    assert throttle_words(0x44) == "too hot (hardware)"
    program.write_text("#!/bin/sh\nexit 9\n")
    ask_smi(found)
    assert "nvidia-smi" in found.smi_error


# ---------------------------------------------------------------- the pool


def test_the_generated_pool_is_a_prepared_directory(tmp_path):
    write_pool(tmp_path / "pool", 1000, 64, 48, 20_000)
    Manifest.read(tmp_path / "pool", verify=True)
    pool = Pool.open(tmp_path / "pool")
    assert len(pool) == 417 and pool.total_tokens == 417 * 48
    tokens = np.concatenate(pool.tokens(np.arange(len(pool))))
    counts = np.bincount(tokens, minlength=1000)
    assert len(counts) == 1000 and 0.8 < counts[:10].sum() / counts[10:100].sum() < 1.3  # Zipf: ln 11 against ln 101 - ln 11
    before = (tmp_path / "pool" / "manifest.json").stat().st_mtime_ns
    write_pool(tmp_path / "pool", 1000, 64, 48, 20_000)
    assert (tmp_path / "pool" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="at most data.seq_length=64"):
        write_pool(tmp_path / "longer", 1000, 64, 65, 20_000)


# ---------------------------------------------------------------- a real cell

TINY = ["--models", "nano", "--gpus", "1", "--layouts", "zero1", "--seq-length", "64", "--micro-batch", "2"]
TINY += ["--accumulation", "1", "--steps", "6", "--warmup", "2", "--log", "2"]
CPU = ("gpus", "peak", "bf16", "flash-attn", "nccl", "pinned-memory", "triton")


@pytest.mark.full
def test_a_tiny_cell_is_measured_once_and_marked(tmp_path, capsys):
    allowed = [word for name in CPU for word in ("--allow", name)]
    assert command.main(["--folder", str(tmp_path), *TINY, *allowed]) == 0
    held = json.loads((tmp_path / "cells" / "nano-1gpu-zero1.json").read_text())
    assert held["figures"]["steps"] == 4 and held["figures"]["tokens"] == 512 and held["figures"]["mfu"] is None
    assert held["resolved"]["attention"] == "sdpa" and held["resolved"]["optimizer_fused"] is True
    assert any(text.startswith("flash-attn: the run recorded attention='sdpa'") for text in held["findings"])
    assert not (tmp_path / "runs" / "nano-1gpu-zero1" / "checkpoints").exists()
    assert "| nano | 1 | zero1 | 2 x 1 | 128 |" in (tmp_path / "mfu.md").read_text()
    capsys.readouterr()
    assert command.main(["--folder", str(tmp_path), *TINY, *allowed]) == 0
    assert "nano-1gpu-zero1: measured already" in capsys.readouterr().out
    # A run that fails leaves its reason in the table, and ends the command.
    assert command.main(["--folder", str(tmp_path), *TINY, *allowed, "--set", "train.init_from=nowhere"]) == 1
    assert "nano-1gpu-zero1 ended with exit code" in (tmp_path / "mfu.md").read_text()
