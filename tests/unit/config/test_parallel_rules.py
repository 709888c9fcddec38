"""Every rule of mads/config/parallel_rules.py, broken once (T8, S4, Z5): the message has the keys, the numbers and the remedy."""

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from mads.config.compose import ConfigError, compose
from mads.config.parallel_rules import SET_BY_MADS, ZERO_OPTIONS, replica_size
from mads.config.validate import validate
from mads.topology import grid_of

TP, CP, PP = "tensor_model_parallel_size", "context_parallel_size", "pipeline_model_parallel_size"


def refusal(overrides, world):
    for short, key in (("{TP}", TP), ("{CP}", CP), ("{PP}", PP)):
        overrides = [o.replace(short, f"parallel.{key}") for o in overrides]
    with pytest.raises(ConfigError) as caught:
        validate(compose(overrides), world, overrides=overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "overrides, world, words",
    [
        (["{TP}=4", "model.num_attention_heads=4"], 4, ["model.num_key_value_heads=2", f"{TP}=4 = 4 ranks"]),
        (["{TP}=2", "{CP}=2"], 4, ["num_key_value_heads=2", f"{TP}=2 x parallel.{CP}=2 = 4 ranks", "multiple of 4"]),
        (["{TP}=2", "model.ffn_hidden_size=385"], 2, ["model.ffn_hidden_size=385", f"{TP}=2", "use 386"]),
        (["parallel.sequence_parallel=true"], 1, ["parallel.sequence_parallel=true", f"{TP}=1", "sequence_parallel=false"]),
        (["{CP}=2", "data.seq_length=127"], 2, ["data.seq_length=127", f"{CP}=2 = 2 equal parts", "for example 126"]),
        (
            ["{TP}=2", "parallel.sequence_parallel=true", "data.seq_length=129"],
            2,
            ["data.seq_length=129", f"{TP}=2 (sequence_parallel) = 2", "for example 128"],
        ),
        (
            ["{TP}=2", "{CP}=2", "parallel.sequence_parallel=true", "data.seq_length=126", "model.num_key_value_heads=4"],
            4,
            ["data.seq_length=126", f"{CP}=2 x parallel.{TP}=2 (sequence_parallel) = 4", "for example 124"],
        ),
        (["{PP}=5"], 5, [f"{PP}=5 stages", "model.num_layers=4", "at most 4"]),
        (["{PP}=2", "parallel=zero2"], 2, ["parallel.zero_stage=2", f"{PP}=2", "partial sums lost", "parallel=zero1"]),
        (["{PP}=2", "parallel=zero3"], 2, ["parallel.zero_stage=3", f"{PP}=2", "for every micro-batch", "parallel=zero1"]),
        (["{PP}=2", "{TP}=2"], 6, ["6 processes", "replicas of 4 ranks", f"{PP}=2", f"{TP}=2", "a multiple of 4"]),
        (
            ["parallel.control_timeout_s=500"],
            1,
            ["parallel.hang_timeout_s=600.0", "less than parallel.control_timeout_s=500.0", "lower it, or set it to null"],
        ),
        (["parallel.hang_timeout_s=1"], 1, ["parallel.hang_timeout_s=1.0 must be at least 2"]),
        (["{TP}=2"], 1, ["1 processes", "replicas of 2 ranks", "divides 1"]),
        (
            ["{TP}=2", "train.global_batch_size=24"],
            8,
            ["train.global_batch_size=24", "4 data-parallel ranks (of 8, 2 a replica) x 8", "32 rows", "multiple of 32"],
        ),
        (
            ["parallel.offload_optimizer.device=cpu", "parallel=zero0"],
            1,
            ["offload_optimizer.device=cpu", "zero_stage=1", "not 0"],
        ),
        (["parallel.offload_param.device=cpu"], 1, ["offload_param.device=cpu", "zero_stage=3", "not 1"]),
        (
            ["parallel.offload_optimizer={device: nvme, nvme_path: disk}", "parallel=zero2", "reward=auto"],
            1,
            ["offload_optimizer.device=nvme", "zero_stage=3, not 2", "offload_optimizer.device=cpu"],
        ),
        (
            ["parallel.offload_param.device=nvme", "parallel=zero3", "reward=auto"],
            1,
            ["offload_param.device=nvme", "offload_param.nvme_path"],
        ),
        (
            ["parallel.offload_optimizer={device: cpu, nvme_path: disk}"],
            1,
            ["offload_optimizer.nvme_path=disk", "offload_optimizer.device=cpu"],
        ),
        (["parallel.offload_param.pin_memory=true"], 1, ["offload_param.pin_memory=True", "offload_param.device=none"]),
        (["parallel.tensor_parallel_overlap=false"], 1, ["parallel.tensor_parallel_overlap=false", f"{TP}=1"]),
        (["parallel.pipeline_partition=layers"], 1, ["parallel.pipeline_partition=layers", f"{PP}=1"]),
        (["parallel.zero_options.overlap_com=true"], 1, ["zero_options.overlap_com is not known", "overlap_comm", "sub_group"]),
        (["parallel.zero_options.stage=2"], 1, ["zero_options.stage is set by mads", "use parallel.zero_stage"]),
        (["parallel.zero_options.overlap_comm=maybe"], 1, ["zero_options.overlap_comm='maybe'", "true or false"]),
        (["parallel.zero_options.reduce_bucket_size=0"], 1, ["reduce_bucket_size=0", "at least 1"]),
        (["parallel.zero_options.reduce_bucket_size=1.5"], 1, ["reduce_bucket_size=1.5", "whole number"]),
        (["parallel.zero_options.stage3_max_live_parameters=9"], 1, ["zero_stage=3 only, not 1", "leave it out"]),
        (
            ["parallel.zero_options.reduce_scatter=true", "parallel=zero0"],
            1,
            ["reduce_scatter", "zero_stage=1, 2, 3 only, not 0"],
        ),
        (["{PP}=2", "parallel.zero_options.overlap_comm=true"], 2, ["overlap_comm=true", f"{PP}=2"]),
    ],
)
def test_every_rule_of_parallel_sizes_names_them_and_their_numbers(overrides, world, words):
    message = refusal(overrides, world)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) == 1, message


def test_all_parallel_errors_come_at_once():
    message = refusal(["{TP}=3", "{PP}=9", "{CP}=5", "parallel.sequence_parallel=true", "parallel=zero3"], 7)
    assert [line.split("=")[0].split(" ")[0] for line in message.splitlines()] == [
        "model.num_attention_heads", "model.num_key_value_heads", "data.seq_length",
        f"parallel.{PP}", "parallel.zero_stage", "7",
    ]  # fmt: skip


@pytest.mark.parametrize("choice, world", [("tp2_sp", 2), ("pp2", 2), ("cp2", 4), ("3d", 4), ("3d", 16), ("zero3", 4)])
def test_good_layouts_pass_and_have_the_grid_they_say(choice, world):
    config = compose([f"parallel={choice}", "train.micro_batch_size=2"])
    validate(config, world)
    grid = grid_of(config.parallel, world)
    assert grid.world_size == world and replica_size(config.parallel) * grid.dp == world


def test_the_batch_is_cut_over_data_parallel_ranks_only():
    config = compose(["parallel=3d", "train.global_batch_size=8", "train.micro_batch_size=8"])
    validate(config, 4)  # one replica of four ranks
    with pytest.raises(ConfigError, match="2 data-parallel ranks .of 8, 4 a replica. x 8"):
        validate(config, 8)


def test_a_preparation_does_not_ask_for_the_number_of_processes():
    config = compose(["parallel=3d"])
    validate(config, None)
    with pytest.raises(ConfigError, match="1 processes cannot be cut into replicas of 4"):
        validate(config, 1)


def test_keys_with_an_effect_are_not_called_ignored():
    overrides = [f"parallel.{TP}=2", f"parallel.{PP}=2", "parallel.tensor_parallel_overlap=false"]
    overrides += ["parallel.pipeline_partition=layers", "parallel.zero_options.allgather_bucket_size=5e8"]
    config = compose(overrides)
    validate(config, 4, overrides=overrides)
    assert config.parallel.zero_options.allgather_bucket_size == 5e8


@pytest.mark.parametrize("option", ZERO_OPTIONS)
def test_deepspeed_knows_every_option_that_is_let_through(option):
    kind, stages = ZERO_OPTIONS[option]
    for stage in stages:
        value = False if kind is bool else 1234
        read = DeepSpeedZeroConfig(stage=stage, **{option: value})
        names = {field.alias or name: name for name, field in DeepSpeedZeroConfig.model_fields.items()}
        assert getattr(read, names[option]) == value


def test_deepspeed_would_refuse_an_option_that_it_does_not_know():
    with pytest.raises(ValueError, match="overlap_com"):
        DeepSpeedZeroConfig(stage=1, overlap_com=True)
    assert set(SET_BY_MADS) <= set(DeepSpeedZeroConfig.model_fields)
    assert not set(SET_BY_MADS) & set(ZERO_OPTIONS)


def check_unknown_options_are_refused():
    message = refusal(["parallel.zero_options.overlap_com=true", "parallel.zero_options.stage=3"], 1)
    assert len(message.splitlines()) == 2


def test_several_unknown_options_are_all_named():
    check_unknown_options_are_refused()
