"""Pipeline schedules of up to 32 stages and 128 micro-batches: order, messages, buffers, no deadlock."""

from __future__ import annotations

from test_pipeline_schedule import check_inference, check_train

MICRO_BATCHES = (*range(1, 33), 48, 64, 96, 128)


def cases() -> list[dict]:
    return [{"stages": stages, "world": 1} for stages in range(1, 33)]


def run_case(case: dict) -> dict:
    for micro_batches in MICRO_BATCHES:
        check_train(case["stages"], micro_batches)
        check_inference(case["stages"], micro_batches)
    return {"schedules": 2 * len(MICRO_BATCHES)}
