"""The arithmetic of the scaling benchmark; what it measures of ZeRO is held to the doctor in tests/dist/test_doctor_memory.py."""

import pytest

from benchmarks.scaling import GROWN, SHAPE, batches_of, paper_bytes, tables


def test_bytes_of_the_zero_paper():
    """Its example: 7.5B parameters on 64 ranks take 120, 31.4, 16.6 and 1.9 GB."""
    gigabytes = [sum(paper_bytes(7.5e9, stage, 64, "bf16")) / 1e9 for stage in range(4)]
    assert gigabytes == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)
    assert sum(paper_bytes(100, 1, 4, "fp32")) == 100 * (4 + 4 + 2)


def test_every_variant_fills_its_rows():
    for variants in GROWN.values():
        for changed in variants:
            shape = SHAPE | changed
            batch = batches_of(shape, 0)[0]
            assert batch.samples == shape["rows"] * shape["documents"] and (batch.segments >= 0).all()
    assert len({(SHAPE | v)["rows"] * (SHAPE | v)["length"] for v in GROWN["length"]}) == 1


def test_tables_say_the_law_and_the_ratios():
    grown = [
        {**SHAPE, "passes": p, "tokens": 512 * p, "parameters": 10, "flops": 1e9 * p, "cpu": [p, p, p], "peak_bytes": 2**20}
        for p in (1, 2, 4)
    ]
    ratio = [2.0, 1.5, 2.5]
    weak = {"DDP": {f"{c} over {o}" if o else c: ratio for c in ("wall", "cpu") for o in ("", "DDP", "alone")}}
    row = {"precision": "bf16", "stage": 2, "parameters": 10, "weights": 20, "gradients": 20, "optimizer": 60, "all": 100}
    text = tables({"step/tokens": grown, "weak/2": weak, "zero/2": [row | {"doctor": 100, "resident": 130, "ranks": 2}]})
    assert "+ 0.001953 x tokens, every point within 0.0%; exponent 1.00." in text
    assert "| 2 | DDP | 2.000 | 2.000 | 2.000 (1.500 - 2.500) | 2.000 (1.500 - 2.500) | 50.0% | 50.0% |" in text
    assert "| 2 | bf16 | 2 | 2.00 | 2.00 | 6.00 | 10.00 | 9.00 | 1.111 | 10.00 | 1.000 | 13.00 |" in text
