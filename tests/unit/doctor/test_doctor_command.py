"""`mads doctor`: exit codes, what it says of good and bad configurations, and what it proposes."""

import re
import subprocess
import sys

import pytest
from prepared_support import write_prepared

from mads.cli import main
from mads.config.compose import compose
from mads.data.schema import Manifest
from mads.doctor.estimate import GIB, Cluster, batch_of, estimates, fullest
from mads.doctor.remedies import remedies
from mads.doctor.report import warnings
from mads.topology import grid_of

TP, PP, CP = (f"parallel.{axis}_parallel_size" for axis in ("tensor_model", "pipeline_model", "context"))
BASE = ["data=prepared", "data.seq_length=2048", "train.micro_batch_size=1", "train.global_batch_size=64", "selection=random"]
NODE = ["--gpus-per-node", "8"]


def doctor(capsys, *arguments):
    code = main(["doctor", *arguments])
    return code, *capsys.readouterr()


def test_a_layout_that_fits_ends_with_0_and_says_what_it_needs(capsys):
    code, out, err = doctor(capsys, "--nodes", "2", *NODE, *BASE, "model=paper_1b3", "parallel=3d", "model.vocab_size=32001")
    assert code == 0 and err == ""
    for line in (
        "grid: PP(2)-DP(4)-CP(1)-TP(2) = 16 ranks on 2 x 8 GPUs",
        "  tensor parallel   8 groups of 2, inside a node: [0,1] [2,3] [4,5] and 5 more",
        "  pipeline          8 groups of 2, across nodes: [0,8] [1,9] [2,10] and 5 more",
        "batch: 64 rows = 1 (micro-batch) x 16 (micro-batches a step) x 4 (data-parallel ranks)",
        "  131,072 tokens a step, 39,321,600 in 300 steps",
        "  pipeline bubble (pp - 1) / (m + pp - 1) = 1 / 17 = 6% of a step",
        "  vocabulary 32,001, padded to 32,002 for 2 tensor-parallel ranks",
        "  layers of the stages (parallel.pipeline_partition=flops): embedding + 13, 11 + head",
    ):
        assert line in out.splitlines(), out
    needed, have, spare = map(float, re.search(r"^fits: ([\d.]+) of ([\d.]+) GiB, ([\d.]+) to spare", out, re.M).groups())
    assert have == 80 and needed + spare == pytest.approx(80, abs=0.11) and 5 < needed < 20
    assert "warning" not in out


def test_the_parts_add_up_and_the_most_is_the_verdict(capsys):
    _, out, _ = doctor(capsys, *NODE, *BASE, "model=paper_373m", "parallel=zero2")
    parts = [float(x) for x in re.findall(r"^  (?!in all)[a-zA-Z][^:]*? +([\d.]+)(?:  .*)?$", out.split("memory of")[1], re.M)]
    totals = {m: float(x) for m, x in re.findall(r"^  in all, (.+?) +([\d.]+)", out, re.M)}
    assert sum(parts) == pytest.approx(totals["backward"], abs=0.05 * len(parts))
    assert re.search(r"^fits: ([\d.]+)", out, re.M).group(1) == f"{max(totals.values())}"


def test_a_layout_that_does_not_fit_ends_with_1_and_remedies_that_are_estimated_again(capsys):
    code, out, _ = doctor(capsys, *NODE, *BASE, "model=paper_8b", "--gpu-memory-gb", "40")
    assert code == 1
    assert re.search(r"^does not fit: needs [\d.]+ GiB \(backward\), a GPU has 40.0$", out, re.M)
    fitting = re.findall(r"^  (parallel\S+(?: parallel\S+)*): ([\d.]+) GiB, fits", out, re.M)
    assert len(fitting) >= 2
    for changes, said in fitting[:2]:
        code, again, _ = doctor(capsys, *NODE, *BASE, "model=paper_8b", "--gpu-memory-gb", "40", *changes.split())
        assert code == 0 and f"fits: {said} of 40.0 GiB" in again
    assert out.index("parallel.zero_stage=2") < out.index("activation_checkpointing=full") < out.index(f"{TP}=8")


def test_remedies_are_put_together_where_none_is_enough():
    config = compose([*BASE, "data.dir=x", "model=paper_8b"])
    cluster = Cluster(1, 8, 18 * GIB, 400 * GIB)
    found = remedies(config, cluster)
    alone, together = found[:-1], found[-1]
    assert all(r.peak > cluster.gpu_memory for r in alone)
    assert together.cost == "together" and len(together.changes) > 1 and together.peak <= cluster.gpu_memory
    assert remedies(config, Cluster(1, 8, 2 * GIB))[-1].cost != "together"  # nothing is enough there


def test_errors_of_sizes_come_all_at_once_with_2(capsys):
    arguments = [*BASE, f"{TP}=3", f"{PP}=33", f"{CP}=5", "parallel=zero3", "model=paper_8b", "parallel.zero_options.x=1"]
    code, out, err = doctor(capsys, "--nodes", "2", *NODE, *arguments)
    assert code == 2 and out == ""
    keys = ["model.num_attention_heads", "model.num_key_value_heads", "model.ffn_hidden_size", "data.seq_length", f"{PP}=33"]
    for words in (*keys, "parallel.zero_stage=3", "16 processes", "zero_options.x"):
        assert words in err, err
    assert len(err.strip().splitlines()) == 8


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--nodes", "0"], "--nodes=0 must be at least 1"),
        (["--gpus-per-node", "-1"], "--gpus-per-node=-1 must be at least 1"),
        (["--gpu-memory-gb", "0"], "--gpu-memory-gb=0.0 must be more than 0"),
        (["--host-memory-gb", "-2"], "--host-memory-gb=-2.0 must not be negative"),
        (["parallel.nonsense=1"], "nonsense"),
    ],
)
def test_bad_options_are_named(capsys, arguments, words):
    code, _, err = doctor(capsys, *arguments)
    assert code == 2 and words in err


def test_the_host_is_checked_when_its_memory_is_given(capsys):
    arguments = [*NODE, *BASE, "model=paper_1b3", "parallel.offload_optimizer.device=cpu"]
    assert doctor(capsys, *arguments, "--host-memory-gb", "500")[0] == 0
    code, out, _ = doctor(capsys, *arguments, "--host-memory-gb", "30")
    assert code == 1 and "host memory of a node: does not fit: " in out


def said(overrides, nodes, gpus):
    config = compose([*BASE, "data.dir=x", *overrides])
    cluster = Cluster(nodes, gpus, 80 * GIB)
    return list(warnings(config, cluster, grid_of(config.parallel, nodes * gpus), batch_of(config, nodes * gpus)))


@pytest.mark.parametrize(
    "overrides, nodes, gpus, words",
    [
        ([f"{TP}=2", "parallel.sequence_parallel=true"], 2, 1, "tensor-parallel groups of 2 cross nodes of 1 GPUs"),
        ([f"{TP}=2", "parallel.sequence_parallel=true"], 2, 3, "cross nodes of 3 GPUs"),
        ([f"{PP}=4", "train.global_batch_size=2"], 1, 4, "2 micro-batches a step on 4 pipeline stages: stages wait 60%"),
        (["parallel=zero0"], 1, 8, "adds the gradients of 8 micro-batches up in bf16"),
        ([f"{TP}=2"], 1, 8, "parallel.sequence_parallel=true would cut the activations"),
        (["parallel=3d"], 2, 8, None),
    ],
)
def test_what_works_but_is_slow_or_coarse_is_a_warning(overrides, nodes, gpus, words):
    found = said(overrides, nodes, gpus)
    assert found == [] if words is None else len(found) == 1 and words in found[0], found


def test_a_longer_pipeline_holds_fewer_micro_batches_on_later_stages():
    config = compose([*BASE, "data.dir=x", "model=paper_1b3", f"{PP}=4"])
    stages = estimates(config, Cluster(1, 8, 80 * GIB))
    assert [e.in_flight for e in stages] == [4, 3, 2, 1]
    kept = [e.parts["activations of the layers"] / e.in_flight / e.share.layers for e in stages]
    assert kept == pytest.approx([kept[0]] * 4, rel=0.01)
    assert fullest(stages) is max(stages, key=lambda e: e.peak)


def test_rewards_need_memory_that_a_random_selection_does_not():
    both = [compose([*BASE, "data.dir=x", "model=paper_1b3", f"selection={s}"]) for s in ("random", "mads")]
    random, mads = (fullest(estimates(config, Cluster(1, 8, 80 * GIB))) for config in both)
    assert "reward round" not in random.moments and mads.worst_moment == "reward steps"
    assert mads.moments["backward"] == random.moments["backward"]


def test_a_prepared_directory_is_held_against_the_configuration(capsys, tmp_path):
    write_prepared(tmp_path / "corpus")
    held = Manifest.read(tmp_path / "corpus").parts["train"]["tokens"]
    data = [f"data.dir={tmp_path / 'corpus'}", "data=prepared", "selection=random", "train.global_batch_size=8"]
    code, out, _ = doctor(capsys, *data, "data.seq_length=24")
    assert code == 0 and f"{held:,} tokens to train on: {held / (8 * 24):,.1f} steps" in out
    code, _, err = doctor(capsys, *data, "data.seq_length=20", "model.vocab_size=300", "train.global_batch_size=8000")
    assert code == 2
    for words in ("data.seq_length=20", "of up to 24", "model.vocab_size=300", "has 400 pieces", f"{8000 * 20} tokens a step"):
        assert words in err, err


def test_the_doctor_loads_no_training_library():
    code = (
        "import sys; from mads.cli import main; code = main(['doctor', 'selection=random']); "
        "print(code, [m for m in ('deepspeed', 'mads.train') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
