"""What benchmarks share: cells that are measured once, ranks that fail aloud, and the laws that are printed."""

import json

import pytest

from benchmarks.cells import exponent, finished, line, measure_cells, on_ranks, quartiles


def test_a_cell_is_measured_once_and_one_that_was_cut_off_again(tmp_path):
    path, asked = tmp_path / "folder" / "cells.jsonl", []
    cells = [(name, lambda name=name: asked.append(name) or {"of": name}) for name in ("a", "b")]
    assert measure_cells(path, cells, say=lambda line: None) == {"a": {"of": "a"}, "b": {"of": "b"}}
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][:12])
    assert finished(path) == {"a": {"of": "a"}}
    path.write_text(lines[0] + "\n")
    measure_cells(path, cells, say=lambda line: None)
    assert asked == ["a", "b", "b"] and {"commit", "date"} < set(json.loads(lines[0]))


def test_laws():
    x = [1.0, 2.0, 4.0, 8.0]
    assert line(x, [3 + 2 * v for v in x]) == pytest.approx((3, 2, 0), abs=1e-9)
    a, b, worst = line(x, [2 * v - 0.5 for v in x])  # a negative start is none
    assert a == 0 and 1.5 < b < 2 and worst > 0.05
    assert exponent(x, [5 * v**1.5 for v in x]) == pytest.approx(1.5)
    assert quartiles([1, 2, 3, 4, 5]) == (3, 2, 4)


@pytest.mark.full
def test_ranks_answer_in_order_or_fail_with_their_own_words():
    import torch.distributed

    assert on_ranks(2, torch.distributed.get_rank) == [0, 1]
    with pytest.raises(RuntimeError, match="rank 0 of 1 failed(.|\n)*invalid literal"):
        on_ranks(1, int, "x")
