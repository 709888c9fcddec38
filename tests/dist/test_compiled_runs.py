"""A run with train.compile=true resumes exactly (K6)."""

import pytest
from harness import run_ranks
from run_support import curve, prepare_small
from test_resume import assert_same, train_until


def check_resume(prepared, folder):
    overrides = ["train.compile=true", "train.steps=8", "selection.interval=3", "parallel=zero1"]
    whole = train_until(prepared, f"{folder}/whole", [8], overrides)
    assert_same(train_until(prepared, f"{folder}/parts", [4, 8], overrides), whole)
    assert curve(f"{folder}/whole") == curve(f"{folder}/parts")


@pytest.mark.full
def test_k6_a_compiled_run_resumes_bit_for_bit(tmp_path):
    run_ranks(1, check_resume, str(prepare_small(tmp_path)), str(tmp_path), timeout=900)
