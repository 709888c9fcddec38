"""`mads train` on a GPU as it is meant to run, bf16 with flash-attn and the fused optimizer, against fp32 with SDPA."""

import json

import pytest
from command_support import MADS, run, settings

SMALL = ["model=nano", "train.steps=3", "train.log_interval=1", "train.global_batch_size=8", "train.micro_batch_size=4"]
SMALL += ["selection=random", "schedule.warmup_steps=1", "train.eval_interval=3"]


def _trained(prepared, folder, *overrides):
    done = run([*MADS, "train", "--workers", 1, *settings(prepared, folder, *SMALL, *overrides)], folder.parent, 600)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"], json.loads((folder / "environment.json").read_text())["resolved"]


@pytest.mark.gpu
def test_steps_in_bf16_with_flash_follow_fp32_with_sdpa(prepared, tmp_path):
    pytest.importorskip("flash_attn")
    exact, as_exact = _trained(prepared, tmp_path / "exact", "train.precision=fp32", "model.attention=sdpa")
    fast, as_fast = _trained(prepared, tmp_path / "fast", "train.precision=bf16", "model.attention=flash")
    for a, b in zip(exact, fast):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2) and b["grad_norm"] == pytest.approx(a["grad_norm"], rel=5e-2)
        assert a["tokens"] == b["tokens"]
    assert len(fast) == 3 and fast[-1]["loss"] < fast[0]["loss"]
    assert (as_exact["precision"], as_exact["attention"]) == ("fp32", "sdpa")
    assert (as_fast["precision"], as_fast["attention"]) == ("bf16", "flash")
    for facts in (as_exact, as_fast):
        assert facts["optimizer"] == "AdamW" and facts["optimizer_fused"] and facts["communication"] == "nccl"
        assert facts["head"] == "triton" and facts["device_name"] and facts["driver"] != "unknown"
