"""A sample of the inputs that benchmarks/fuzz.py reads by the thousand: nothing is raised, everything is accounted for."""

import pytest
from fuzz_inputs import DAMAGES
from fuzz_judge import read_and_judge

PAIRS = [(damage, format) for damage, formats in DAMAGES.items() for format in formats]


@pytest.mark.parametrize("damage, format", [p for p in PAIRS if p[0] not in ("huge", "bomb")])
def test_damaged_inputs_are_read_or_rejected(tmp_path, damage, format):
    problems, accepted, rejected = [], 0, 0
    for seed in range(8):
        folder = tmp_path / str(seed)
        folder.mkdir()
        verdict = read_and_judge(damage, format, seed, folder)
        problems += verdict.problems
        accepted, rejected = accepted + verdict.accepted, rejected + verdict.rejected.total()
    assert problems == []
    assert rejected > 0 or damage == "none"
    assert accepted > 0 or damage not in ("none", "malformed lines", "wrong types", "encodings")
