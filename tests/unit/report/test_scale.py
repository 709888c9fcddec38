import random

import pytest

from mads.report.scale import Scale, compact, fixed, shorten, spread, text_width, tick_texts, ticks


@pytest.mark.parametrize(
    "low, high", [(0, 1), (3.61, 8.4), (-0.002, 0.0031), (0, 31_500_000_000), (1e-12, 3e-12), (1_000_000, 1_000_900), (-5, -4.9)]
)
def test_ticks_are_round_inside_and_told_apart(low, high):
    values = ticks(low, high)
    assert 2 <= len(values) <= 10 and all(low - 1e-9 * (high - low) <= v <= high + 1e-9 * (high - low) for v in values)
    steps = [b - a for a, b in zip(values, values[1:])]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert f"{steps[0]:.0e}"[0] in "125"
    assert len(set(tick_texts(values))) == len(values)


def test_integer_ticks_are_integers():
    assert ticks(0, 2, integer=True) == [0, 1, 2]
    assert all(v == int(v) for v in ticks(0, 37, integer=True))


@pytest.mark.parametrize("seed", range(20))
def test_spread_keeps_order_gap_and_bounds(seed):
    draw = random.Random(seed)
    wanted = [draw.uniform(0, 100) for _ in range(draw.randint(1, 12))]
    placed = spread(wanted, 8.0, 0.0, 100.0)
    assert all(-1e-9 <= p <= 100 + 1e-9 for p in placed)
    ordered = [p for _, p in sorted(zip(wanted, placed))]
    assert all(b - a >= 8.0 - 1e-9 for a, b in zip(ordered, ordered[1:]))


def test_spread_leaves_free_labels_alone_and_crowds_no_further_than_it_must():
    assert spread([10.0, 50.0, 90.0], 8.0, 0.0, 100.0) == [10.0, 50.0, 90.0]
    assert spread([5.0] * 5, 100.0, 0.0, 40.0) == pytest.approx([0.0, 10.0, 20.0, 30.0, 40.0], abs=5.01)


def test_scale_reaches_what_it_must_and_survives_one_value():
    scale = Scale.over([0.2, 0.4], 100.0, 0.0, 0.05, (0.0,))
    assert scale(0.0) == 100.0 and 0.0 < scale(0.4) < 100.0
    for value in (0.0, 3.0, -2.0):
        flat = Scale.over([value], 0.0, 100.0)
        assert flat(value) == pytest.approx(50.0)


def test_numbers_for_readers():
    assert [compact(v) for v in (0, 950, 1000, 1_250_000, 31.5e9)] == ["0", "950", "1k", "1.25M", "31.5B"]
    assert [fixed(v) for v in (1.23456, -0.5, -0.0001)] == ["1.235", "−0.500", "0.000"]


def test_shorten_fits_its_room():
    text = "business and industrial"
    short = shorten(text, 80)
    assert short.endswith("…") and text.startswith(short[:-1]) and text_width(short) <= 80
    assert shorten(text, 1000) == text
